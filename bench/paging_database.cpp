// PostgreSQL in a guest whose memory is split, under load from outside it. The share that is local changes while it runs.

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "paging_parts.hpp"
#include "postgres_guest.hpp"

namespace yado::bench {
namespace {

using nlohmann::json;

constexpr std::uint64_t pushed_out = 16;  // one part in so many stays: less than a guest that only idles touches
constexpr PgbenchLoad loads[] = {database_reading, database_writing};

struct Size {
  std::uint64_t memory_bytes;
  int scale;    ///< of pgbench
  int seconds;  ///< of one measurement
};
constexpr Size full_size{384_MiB, 8, 20}, quick_size{256_MiB, 2, 6};

/// Bytes that both loads and the check touch, with what is brought in beside: what comes back of a memory that was pushed out.
Result<std::uint64_t> measure_working_set(PostgresGuest& database, const Size& size) {
  YADO_TRY(database.limit(size.memory_bytes / pushed_out), "push out");
  YADO_TRY(database.limit(size.memory_bytes), "push out");
  YADO_TRY(database.check(), "warm up");
  for (const PgbenchLoad& load : loads) YADO_TRY(database.run(load, size.seconds), "warm up");
  YADO_ASSIGN(const json figures, database.figures(), "warm up");
  return figures.value("local_bytes", std::uint64_t{0});
}

std::string share_name(unsigned percent) { return fmt::format("{} % local", percent); }

Status measure_share(PagingBench& bench, PostgresGuest& database, const Size& size, std::uint64_t working_set, unsigned percent, int round) {
  YADO_TRY(database.limit(percent == 100 ? size.memory_bytes : working_set * percent / 100), share_name(percent));
  for (const PgbenchLoad& load : loads) {
    // Brings everything once: every share begins alike.
    YADO_TRY(database.check(), load.name);
    YADO_TRY(database.run(load, size.seconds / 2), load.name);
    YADO_ASSIGN(const json before, database.figures(), load.name);
    YADO_ASSIGN(const Transactions done, database.run(load, size.seconds), load.name);
    YADO_ASSIGN(const json after, database.figures(), load.name);
    YADO_ASSIGN(const double p50_ms, done.percentile_ms(0.5), load.name);
    YADO_ASSIGN(const double p99_ms, done.percentile_ms(0.99), load.name);
    const auto per_transaction = [&](const char* count) { return (after.value(count, 0.0) - before.value(count, 0.0)) / static_cast<double>(done.all.size()); };
    std::vector<Value> values = {{"transactions_per_s", "1/s", done.per_s},
                                 {"latency_p50_ms", "ms", p50_ms},
                                 {"latency_p99_ms", "ms", p99_ms},
                                 {"remote_faults_per_transaction", "1", per_transaction("remote_faults")},
                                 {"pages_in_per_transaction", "1", per_transaction("paged_in")},
                                 {"working_set_mib", "MiB", static_cast<double>(working_set) / static_cast<double>(1_MiB)}};
    YADO_TRY(bench.add({load.name, share_name(percent), round, std::move(values)}), "results");
  }
  return database.check();
}

}  // namespace

Status measure_database(PagingBench& bench) {
  for (const unsigned percent : bench.options.local_percent)
    if (percent != 100) bench.report.comparisons.push_back({"transactions_per_s", false, share_name(percent), share_name(100)});
  const Size& size = bench.options.quick ? quick_size : full_size;
  YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(bench.rig), "database");
  YADO_ASSIGN(PostgresGuest database, PostgresGuest::boot({.rig = bench.rig, .work = work, .guests = bench.options.guests, .name = "database", .memory_bytes = size.memory_bytes, .local_bytes = size.memory_bytes}), "boot");
  bench.say("database: it is up");
  YADO_TRY(database.fill(size.scale), "fill");
  bench.say("database: it is filled");
  YADO_ASSIGN(const std::uint64_t working_set, measure_working_set(database, size), "working set");
  bench.say(fmt::format("database: its working set is {} of {} MiB", working_set >> 20, size.memory_bytes >> 20));
  for (int round = 1; round <= bench.options.repeat; ++round)
    for (const unsigned percent : bench.options.local_percent) YADO_TRY(measure_share(bench, database, size, working_set, percent, round), "database");
  return {};
}

}  // namespace yado::bench
