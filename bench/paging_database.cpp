// PostgreSQL in a guest whose memory is split, under load from outside it. The share that is local changes while it runs.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "net/guest_network.hpp"
#include "net/rtnl.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "paging_parts.hpp"
#include "program.hpp"
#include "split_vm_hosts.hpp"
#include "workload/vm/vm.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint32_t hosts = 2;        // one memory server: what one link gives
constexpr auto boot_limit = 180s, room_limit = 120s;  // keep a broken run from hanging
constexpr const char* program_limit_s = "900";        // the same
constexpr auto look_every = 10ms;
constexpr std::uint64_t pushed_out = 16;  // one part in so many stays: less than a guest that only idles touches
constexpr const char* guest_address = "10.87.0.2";
constexpr const char* clients = "4";

struct Size {
  std::uint64_t memory_bytes;
  int scale;    ///< of pgbench: 100 000 accounts each, some 16 MB with their index
  int seconds;  ///< of one measurement
};
constexpr Size full_size{384_MiB, 8, 20}, quick_size{256_MiB, 2, 6};

struct Load {
  const char* name;
  const char* script;  ///< of pgbench
  bool writes;
};
constexpr Load loads[] = {{"database reading", "select-only", false}, {"database writing", "tpcb-like", true}};

/// PostgreSQL's own programs, of the newest version that is installed.
Result<fs::path> program(const std::string& name) {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", ignored))
    if (fs::exists(version.path() / "bin" / name)) found.push_back(version.path() / "bin" / name);
  if (found.empty()) return fail(Errc::not_found, "no {} below /usr/lib/postgresql: ./run deps installs postgresql-15", name);
  return *std::ranges::max_element(found);
}

/// The number behind `words`.
Result<double> number_after(const std::string& text, const std::string& words) {
  const std::size_t at = text.find(words);
  if (at == std::string::npos) return fail(Errc::corrupt, "pgbench did not say \"{}\":\n{}", words, text);
  return std::strtod(text.c_str() + at + words.size(), nullptr);
}

struct Transactions {
  std::uint64_t count = 0;
  double per_s = 0, p50_ms = 0, p99_ms = 0;
};

class Database {
 public:
  static Result<Database> start(PagingBench& bench, const WorkDirectories& work, const Size& size) {
    Database made;
    made.directory_ = work.of(0) / "database";
    std::error_code error;
    if (!fs::create_directory(made.directory_, error)) return fail_errno(error.value(), "make " + made.directory_.native());
    const HostId& host = bench.rig.hosts().front();
    YADO_ASSIGN(made.network_, bench.rig.lab().netns(host), "database");
    YADO_TRY(make_bridge(*made.network_), "database");
    YADO_ASSIGN(SplitHosts servers, SplitHosts::start(bench.rig, work, hosts, size.memory_bytes), "database");
    made.servers_.emplace(std::move(servers));
    vm::Paging paging = made.servers_->paging(pager::ServiceConfig().prefetch_pages);
    paging.config.local_bytes = size.memory_bytes;

    const fs::path guest = bench.options.guests / "database";
    // no_timer_check: on busy cores a TCG guest's kernel finds its emulated timer too slow, and panics.
    vm::VmSpec spec{.name = "database", .kernel = guest / "kernel", .initramfs = guest / "initramfs",
                    .kernel_command_line = fmt::format("console=ttyS0 quiet no_timer_check yado.address={}/24", guest_address), .memory_bytes = size.memory_bytes,
                    .disks = {guest / "disk.qcow2"}, .mac = net::guest_mac()};
    const vm::Place place{.directory = made.directory_, .cgroup = bench.rig.cgroup(host, "database"), .network_namespace = made.network_->fd().get(),
                          .bridge = net::guest_bridge, .paging = std::move(paging)};
    vm::Qemu qemu;
    qemu.accelerator = vm::choose_accelerator();
    YADO_ASSIGN(vm::Vm vm, vm::Vm::start(spec, place, qemu), "database");
    made.vm_.emplace(std::move(vm));
    YADO_TRY(made.vm_->console().wait_for("database system is ready to accept connections", boot_limit), "database");
    return made;
  }

  Status fill(int scale) {
    YADO_TRY(pgbench({"--initialize", "--init-steps=dtGvp", fmt::format("--scale={}", scale)}), "fill the database");
    return {};
  }

  Result<Transactions> run(const Load& load, int seconds) {
    const fs::path logs = directory_ / "log";
    std::error_code error;
    fs::remove_all(logs, error);
    if (!fs::create_directory(logs, error)) return fail_errno(error.value(), "make " + logs.native());
    YADO_ASSIGN(const std::string said, pgbench({"--no-vacuum", "--protocol=prepared", fmt::format("--builtin={}", load.script), fmt::format("--client={}", clients), "--jobs=1",
                                                 fmt::format("--time={}", seconds), "--log", fmt::format("--log-prefix={}", (logs / "load").native())}),
                load.name);
    Transactions done;
    YADO_ASSIGN(done.per_s, number_after(said, "tps = "), load.name);
    YADO_ASSIGN(const double failed, number_after(said, "number of failed transactions: "), load.name);
    if (failed != 0) return fail(Errc::application, "{}: {} transactions failed", load.name, failed);
    // The third word of every line: microseconds.
    std::vector<double> ms;
    for (const auto& file : fs::directory_iterator(logs, error)) {
      std::ifstream lines(file.path());
      std::uint64_t client = 0, number = 0, us = 0;
      for (std::string line; std::getline(lines, line);)
        if (std::istringstream(line) >> client >> number >> us) ms.push_back(static_cast<double>(us) / 1000);
    }
    if (ms.empty()) return fail(Errc::application, "{}: no transaction was done", load.name);
    std::ranges::sort(ms);
    const auto at = [&](double part) { return ms[static_cast<std::size_t>(std::ceil(part * static_cast<double>(ms.size()))) - 1]; };
    done.count = ms.size();
    done.p50_ms = at(0.5);
    done.p99_ms = at(0.99);
    if (load.writes) written_ += done.count;
    return done;
  }

  /// Reads every account. All sums are of the same transfers, and there are as many of these as were acknowledged.
  Status check() {
    YADO_ASSIGN(const fs::path psql, program("psql"), "check");
    YADO_ASSIGN(const std::string said, outside({psql, "-h", guest_address, "-U", "postgres", "-d", "postgres", "-At", "-F", " ", "-c",
                                                 "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM "
                                                 "pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)"}),
                "check");
    std::int64_t accounts = 0, tellers = 1, branches = 2, history = 3, transfers = -1;
    std::istringstream(said) >> accounts >> tellers >> branches >> history >> transfers;
    if (accounts != tellers || tellers != branches || branches != history || transfers != static_cast<std::int64_t>(written_))
      return fail(Errc::corrupt, "the database is WRONG: accounts, tellers, branches, history and its length are {}; {} were acknowledged", said, written_);
    return {};
  }

  Result<json> figures() const {
    YADO_ASSIGN(const std::string text, vm::ask_pager(vm_->pager(), R"({"do":"figures"})"), "pager");
    return json::parse(text);
  }
  /// Returns when no more than that is here.
  Status limit(std::uint64_t local_bytes) {
    YADO_TRY(vm::ask_pager(vm_->pager(), json{{"do", "limit"}, {"bytes", local_bytes}}.dump()), "limit");
    for (const Instant deadline = os::now() + room_limit; os::now() < deadline; std::this_thread::sleep_for(look_every)) {
      YADO_ASSIGN(const json now, figures(), "limit");
      if (now.value("over_limit", std::uint64_t{0}) == 0) return {};
    }
    return fail(Errc::timed_out, "the guest's memory did not come below {} MiB", local_bytes >> 20);
  }

 private:
  static Status make_bridge(const os::Netns& network) {
    YADO_ASSIGN(net::Rtnl links, net::Rtnl::open(network), "bridge");
    if (links.has_link(net::guest_bridge)) return {};
    YADO_TRY(links.add_bridge(net::guest_bridge, net::Mac::of(net::guest_gateway)), "bridge");
    YADO_TRY(links.add_address(net::guest_bridge, {net::guest_gateway, 24}), "bridge");
    return links.set_up(net::guest_bridge);
  }

  /// Of a program beside the guest: its output.
  Result<std::string> outside(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"/usr/bin/timeout", program_limit_s});
    auto said = os::run_in(*network_, [&] { return run_program(arguments); });
    if (!vm_->console().hold()) return fail(Errc::application, "the guest has ended");
    return said;
  }
  Result<std::string> pgbench(std::vector<std::string> options) {
    YADO_ASSIGN(const fs::path path, program("pgbench"), "load");
    options.insert(options.begin(), {path, "-h", guest_address, "-U", "postgres"});
    options.emplace_back("postgres");  // the database's name
    return outside(std::move(options));
  }

  fs::path directory_;
  const os::Netns* network_ = nullptr;
  std::optional<SplitHosts> servers_;
  std::optional<vm::Vm> vm_;
  std::uint64_t written_ = 0;  ///< transactions that were acknowledged
};

/// Bytes that both loads and the check touch, with what is brought in beside: what comes back of a memory that was pushed out.
Result<std::uint64_t> measure_working_set(Database& database, const Size& size) {
  YADO_TRY(database.limit(size.memory_bytes / pushed_out), "push out");
  YADO_TRY(database.limit(size.memory_bytes), "push out");
  YADO_TRY(database.check(), "warm up");
  for (const Load& load : loads) YADO_TRY(database.run(load, size.seconds), "warm up");
  YADO_ASSIGN(const json figures, database.figures(), "warm up");
  return figures.value("local_bytes", std::uint64_t{0});
}

std::string share_name(unsigned percent) { return fmt::format("{} % local", percent); }

Status measure_share(PagingBench& bench, Database& database, const Size& size, std::uint64_t working_set, unsigned percent, int round) {
  YADO_TRY(database.limit(percent == 100 ? size.memory_bytes : working_set * percent / 100), share_name(percent));
  for (const Load& load : loads) {
    // Brings everything once: every share begins alike.
    YADO_TRY(database.check(), load.name);
    YADO_TRY(database.run(load, size.seconds / 2), load.name);
    YADO_ASSIGN(const json before, database.figures(), load.name);
    YADO_ASSIGN(const Transactions done, database.run(load, size.seconds), load.name);
    YADO_ASSIGN(const json after, database.figures(), load.name);
    const auto per_transaction = [&](const char* count) { return (after.value(count, 0.0) - before.value(count, 0.0)) / static_cast<double>(done.count); };
    std::vector<Value> values = {{"transactions_per_s", "1/s", done.per_s},
                                 {"latency_p50_ms", "ms", done.p50_ms},
                                 {"latency_p99_ms", "ms", done.p99_ms},
                                 {"remote_faults_per_transaction", "1", per_transaction("remote_faults")},
                                 {"pages_in_per_transaction", "1", per_transaction("paged_in")},
                                 {"working_set_mib", "MiB", static_cast<double>(working_set) / static_cast<double>(1_MiB)}};
    YADO_TRY(bench.add({load.name, share_name(percent), round, std::move(values)}), "results");
  }
  return database.check();
}

}  // namespace

Status measure_database(PagingBench& bench) {
  if (!fs::exists(bench.options.guests / "database/disk.qcow2"))
    return fail(Errc::not_found, "no guest at \"{}\": tools/make-guest database $YADO_GUESTS/database makes it, ./run bench paging does too", (bench.options.guests / "database").native());
  for (const unsigned percent : bench.options.local_percent)
    if (percent != 100) bench.report.comparisons.push_back({"transactions_per_s", false, share_name(percent), share_name(100)});
  const Size& size = bench.options.quick ? quick_size : full_size;
  YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(bench.rig), "database");
  YADO_ASSIGN(Database database, Database::start(bench, work, size), "boot");
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
