#include "postgres_guest.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

#include "net/guest_network.hpp"
#include "os/clock.hpp"
#include "program.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr auto boot_limit = 180s, room_limit = 120s;  // keep a broken run from hanging
constexpr const char* program_limit_s = "900";        // the same
constexpr auto look_every = 10ms;
constexpr const char* guest_address = "10.87.0.2";
constexpr const char* clients = "4";

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

/// pgbench's lines: client, number, microseconds it took, script, and when it ended in seconds and microseconds.
std::vector<Transaction> read_logs(const fs::path& directory) {
  std::vector<Transaction> all;
  std::error_code ignored;
  for (const auto& file : fs::directory_iterator(directory, ignored)) {
    std::ifstream lines(file.path());
    std::uint64_t client = 0, number = 0, us = 0, script = 0, second = 0, second_us = 0;
    for (std::string line; std::getline(lines, line);)
      if (std::istringstream(line) >> client >> number >> us >> script >> second >> second_us)
        all.push_back({.ended_s = static_cast<double>(second) + static_cast<double>(second_us) / 1e6, .ms = static_cast<double>(us) / 1000});
  }
  return all;
}

Status make_bridge(const os::Netns& network) {
  YADO_ASSIGN(net::Rtnl links, net::Rtnl::open(network), "bridge");
  if (links.has_link(net::guest_bridge)) return {};
  YADO_TRY(links.add_bridge(net::guest_bridge, net::Mac::of(net::guest_gateway)), "bridge");
  YADO_TRY(links.add_address(net::guest_bridge, {net::guest_gateway, 24}), "bridge");
  return links.set_up(net::guest_bridge);
}

vm::Qemu qemu() {
  vm::Qemu chosen;
  chosen.accelerator = vm::choose_accelerator();
  return chosen;
}

}  // namespace

Result<double> Transactions::percentile_ms(double part) const {
  if (all.empty()) return fail(Errc::application, "no transaction was done");
  std::vector<double> ms;
  for (const Transaction& one : all) ms.push_back(one.ms);
  std::ranges::sort(ms);
  return ms[static_cast<std::size_t>(std::ceil(part * static_cast<double>(ms.size()))) - 1];
}

Result<PostgresGuest> PostgresGuest::prepare(const Where& where) {
  if (!fs::exists(where.guests / "database/disk.qcow2"))
    return fail(Errc::not_found, "no guest at \"{}\": tools/make-guest database $YADO_GUESTS/database makes it, ./run bench paging does too", (where.guests / "database").native());
  PostgresGuest made;
  made.directory_ = where.work.of(0) / where.name;
  std::error_code error;
  if (!fs::create_directory(made.directory_, error)) return fail_errno(error.value(), "make " + made.directory_.native());
  YADO_ASSIGN(made.network_, where.rig.lab().netns(where.rig.hosts().front()), "host");
  YADO_TRY(make_bridge(*made.network_), "host");
  YADO_ASSIGN(SplitHosts servers, SplitHosts::start(where.rig, where.work, hosts, where.memory_bytes), "memory servers");
  made.servers_.emplace(std::move(servers));
  return made;
}

vm::VmSpec PostgresGuest::spec(const Where& where) const {
  const fs::path guest = where.guests / "database";
  // no_timer_check: on busy cores a TCG guest's kernel finds its emulated timer too slow, and panics.
  return {.name = "database", .kernel = guest / "kernel", .initramfs = guest / "initramfs",
          .kernel_command_line = fmt::format("console=ttyS0 quiet no_timer_check yado.address={}/24", guest_address), .memory_bytes = where.memory_bytes,
          .disks = {guest / "disk.qcow2"}, .mac = net::guest_mac()};
}

vm::Place PostgresGuest::place(const Where& where, vm::Paging paging) const {
  paging.config.local_bytes = where.local_bytes;
  return {.directory = directory_, .cgroup = where.rig.cgroup(where.rig.hosts().front(), where.name), .network_namespace = network_->fd().get(),
          .bridge = net::guest_bridge, .paging = std::move(paging)};
}

Result<PostgresGuest> PostgresGuest::boot(const Where& where) {
  YADO_ASSIGN(PostgresGuest made, prepare(where), "database");
  YADO_ASSIGN(vm::Vm vm, vm::Vm::start(made.spec(where), made.place(where, made.servers_->paging(pager::ServiceConfig().prefetch_pages)), qemu()), "database");
  made.vm_.emplace(std::move(vm));
  YADO_TRY(made.vm_->console().wait_for("database system is ready to accept connections", boot_limit), "database");
  return made;
}

Result<PostgresGuest> PostgresGuest::restore(const Where& where, const SplitImage& image, const fs::path& use) {
  YADO_ASSIGN(PostgresGuest made, prepare(where), "database");
  vm::Paging paging = made.servers_->paging(pager::ServiceConfig().prefetch_pages);
  paging.config.image = {{image.directory / "memory"}};
  paging.config.use = use;
  for (auto& server : paging.config.servers) server.load = {image.name + "." + server.host};
  vm::PagedMemory by_the_pager({});
  YADO_ASSIGN(vm::Vm vm, vm::Vm::restore(made.spec(where), made.place(where, std::move(paging)), qemu(), {image.directory / "device-state", image.directory / "disk", image.saved.properties}, by_the_pager), "database");
  made.vm_.emplace(std::move(vm));
  return made;
}

Status PostgresGuest::fill(int scale) {
  YADO_TRY(pgbench({"--initialize", "--init-steps=dtGvp", fmt::format("--scale={}", scale)}), "fill the database");
  return {};
}

Result<Transactions> PostgresGuest::run(const PgbenchLoad& load, int seconds) {
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
  done.all = read_logs(logs);
  if (load.writes) written_ += done.all.size();
  return done;
}

Status PostgresGuest::check() {
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

Result<json> PostgresGuest::figures() const {
  YADO_ASSIGN(const std::string text, vm::ask_pager(vm_->pager(), R"({"do":"figures"})"), "pager");
  return json::parse(text);
}

Status PostgresGuest::limit(std::uint64_t local_bytes) {
  YADO_TRY(vm::ask_pager(vm_->pager(), json{{"do", "limit"}, {"bytes", local_bytes}}.dump()), "limit");
  for (const Instant deadline = os::now() + room_limit; os::now() < deadline; std::this_thread::sleep_for(look_every)) {
    YADO_ASSIGN(const json now, figures(), "limit");
    if (now.value("over_limit", std::uint64_t{0}) == 0) return {};
  }
  return fail(Errc::timed_out, "the guest's memory did not come below {} MiB", local_bytes >> 20);
}

/// Of a program beside the guest: its output.
Result<std::string> PostgresGuest::outside(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"/usr/bin/timeout", program_limit_s});
  auto said = os::run_in(*network_, [&] { return run_program(arguments); });
  if (!vm_->console().hold()) return fail(Errc::application, "the guest has ended");
  return said;
}

Result<std::string> PostgresGuest::pgbench(std::vector<std::string> options) {
  YADO_ASSIGN(const fs::path path, program("pgbench"), "load");
  options.insert(options.begin(), {path, "-h", guest_address, "-U", "postgres"});
  options.emplace_back("postgres");  // the database's name
  return outside(std::move(options));
}

}  // namespace yado::bench
