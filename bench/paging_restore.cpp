// PostgreSQL in a guest goes on from a checkpoint that was taken under load. Of the pages to fetch first it is known which were used just before the cut
// (their recency), or also which were used in the first seconds after it (pager::use_window): how soon the load is as it was.

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "os/clock.hpp"
#include "pager/use_order.hpp"
#include "paging_parts.hpp"
#include "postgres_guest.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Setup {
  std::uint64_t memory_bytes;
  int scale;    ///< of pgbench
  int seconds;  ///< of the load around the checkpoint
};
constexpr Setup full_setup{384_MiB, 8, 25}, quick_setup{256_MiB, 2, 12};
constexpr int seconds_after = 10;     // of the load after a restore
constexpr const char* scenario = "restore, database reading";
constexpr const char *before_only = "used-before", *after_too = "used-after";

double day_s() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

PostgresGuest::Where where(PagingBench& bench, const WorkDirectories& work, const Setup& setup, const std::string& name) {
  return {.rig = bench.rig, .work = work, .guests = bench.options.guests, .name = name, .memory_bytes = setup.memory_bytes, .local_bytes = setup.memory_bytes / 2};
}

/// `use`: where the order goes.
Result<SplitImage> take(PagingBench& bench, const WorkDirectories& work, const Setup& setup, const fs::path& use) {
  YADO_ASSIGN(PostgresGuest database, PostgresGuest::boot(where(bench, work, setup, "database")), "boot");
  YADO_TRY(database.fill(setup.scale), "fill");
  YADO_TRY(database.check(), "warm up");
  YADO_TRY(database.run(database_reading, setup.seconds), "warm up");
  std::future<Result<Transactions>> load = std::async(std::launch::async, [&] { return database.run(database_reading, setup.seconds); });
  auto image = take_image(database.vm(), work, "image", nullptr);
  std::this_thread::sleep_for(pager::use_window);  // from the cut on, which was before this
  const Status used = image ? vm::write_use(database.vm().pager(), image->cut.hex(), use) : Status();
  const bool under_load = load.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  YADO_ASSIGN(const Transactions done, load.get(), "load");
  YADO_TRY(used, "order of use");
  if (!under_load) return fail(Errc::timed_out, "the load of {} s was over before the checkpoint and the {} s after it", setup.seconds, to_ms(pager::use_window) / 1000);
  bench.say(fmt::format("restore: the checkpoint is there; {:.0f} transactions/s around it", done.per_s));
  return image;
}

Status measure_one(PagingBench& bench, const WorkDirectories& work, const Setup& setup, const SplitImage& image, const fs::path& use, int round) {
  YADO_TRY(work.forget_cached(), "restore");
  const double asked = day_s();
  YADO_ASSIGN(PostgresGuest database, PostgresGuest::restore(where(bench, work, setup, "restored"), image, use), "restore");
  const double runs = day_s();
  YADO_ASSIGN(const Transactions done, database.run(database_reading, seconds_after), "restore");
  YADO_ASSIGN(const json figures, database.figures(), "restore");
  YADO_TRY(database.check(), "restore");
  if (done.all.empty()) return fail(Errc::application, "no transaction was done in {} s", seconds_after);
  const double first = std::ranges::min(done.all, {}, &Transaction::ended_s).ended_s;
  const auto within = [&](double seconds) { return static_cast<double>(std::ranges::count_if(done.all, [&](const Transaction& one) { return one.ended_s < runs + seconds; })); };
  return bench.add({scenario, use.empty() ? before_only : after_too, round,
                    {{"runs_s", "s", runs - asked},
                     {"first_transaction_s", "s", first - asked},
                     {"transactions_in_1s", "1", within(1)},
                     {"transactions_in_2s", "1", within(2)},
                     {"transactions_in_5s", "1", within(5)},
                     {"remote_faults", "1", figures.value("remote_faults", 0.0)}}});
}

}  // namespace

Status measure_restores(PagingBench& bench) {
  for (const char* metric : {"transactions_in_1s", "transactions_in_2s", "transactions_in_5s"}) bench.report.comparisons.push_back({metric, false, after_too, before_only});
  for (const char* metric : {"first_transaction_s", "remote_faults"}) bench.report.comparisons.push_back({metric, true, after_too, before_only});
  const Setup& setup = bench.options.quick ? quick_setup : full_setup;
  YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(bench.rig), "restore");
  const fs::path use = work.of(0) / "order-of-use";
  YADO_ASSIGN(const SplitImage image, take(bench, work, setup, use), "checkpoint");
  for (int round = 1; round <= bench.options.repeat; ++round)
    for (const fs::path& known : {fs::path(), use}) {
      YADO_TRY(measure_one(bench, work, setup, image, known, round), "restore");
      std::error_code ignored;
      fs::remove_all(work.of(0) / "restored", ignored);
    }
  return {};
}

}  // namespace yado::bench
