// A guest writes all of its memory, of which a quarter is here, and one of its four memory servers dies: how long the guest stands still,
// and what the redundancy costs that keeps it alive.

#include <algorithm>
#include <optional>
#include <thread>

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "os/clock.hpp"
#include "paging_parts.hpp"
#include "split_vm_guest.hpp"
#include "split_vm_hosts.hpp"
#include "split_vm_qemu.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint32_t hosts = 5;        // a main host and four servers: redundancy, parity too, can be had again without the dead one
constexpr std::size_t victim = 2;         // of the servers: h4
constexpr std::uint64_t guest_bytes = 256_MiB;
constexpr int seconds_of_writing = 3;     // for the rate before and after
constexpr auto recovery_limit = 120s;     // keeps a broken run from hanging
constexpr auto look_every = 10ms;

double mib(double bytes) { return bytes / static_cast<double>(1_MiB); }

/// How the memory outlives a server. A new policy is one more line.
struct Policy {
  const char* name;
  bool survives;
  void (*apply)(pager::ServiceConfig&);
};
constexpr Policy policies[] = {
    {"none", false, [](pager::ServiceConfig& config) { config.copies = 1; }},
    {"replica", true, [](pager::ServiceConfig& config) { config.copies = 2; }},
    {"parity", true, [](pager::ServiceConfig& config) { config.parity = true; }},
};

enum class Death { process, host };
constexpr std::pair<Death, const char*> deaths[] = {
    {Death::process, "death of a server's process"},  // its peers are told (RST)
    {Death::host, "death of a server's host"},        // nothing answers any more
};

/// What a pager says of its servers.
struct Holdings {
  std::uint64_t pages = 0;  ///< on all servers, each copy counted
  std::uint64_t without_redundancy = 0;
  bool all_alive = true;
};

Result<Holdings> holdings(const vm::PagerProcess& pager) {
  YADO_ASSIGN(const std::string text, vm::ask_pager(pager.control(), R"({"do":"figures"})"), "pager");
  const json figures = json::parse(text);
  Holdings found;
  found.without_redundancy = figures.value("pages_without_redundancy", std::uint64_t{0});
  const json servers = figures.value("servers", json::array());
  found.all_alive = servers.size() == hosts - 1;
  for (const json& one : servers) {
    found.pages += one.value("pages", std::uint64_t{0});
    found.all_alive = found.all_alive && one.value("alive", false);
  }
  return found;
}

/// Ends in the right order.
struct Guest {
  std::optional<SplitHosts> servers;
  std::optional<vm::PagerProcess> pager;
  std::unique_ptr<OrdinaryVm> vm;
};

Result<Guest> start(PagingBench& bench, const WorkDirectories& work, const Policy& policy) {
  Guest guest;
  YADO_ASSIGN(SplitHosts servers, SplitHosts::start(bench.rig, work, hosts, guest_bytes), "servers");
  guest.servers.emplace(std::move(servers));
  vm::Paging paging = guest.servers->paging(pager::ServiceConfig().prefetch_pages);
  policy.apply(paging.config);
  YADO_ASSIGN(vm::PagerProcess pager, vm::PagerProcess::start(paging, work.of(0), guest_bytes), "pager");
  guest.pager.emplace(std::move(pager));
  vm::Qemu qemu;
  qemu.accelerator = vm::choose_accelerator();
  YADO_ASSIGN(guest.vm, OrdinaryVm::start(writer_spec(bench.options.guests / "writer", guest_bytes), qemu, bench.rig.cgroup(bench.rig.hosts().front(), "guest"), OrdinaryVm::Begin::boot, &*guest.pager), "VM");
  YADO_TRY(guest.vm->execute("cont"), "VM");
  return guest;
}

/// MiB/s over the next seconds.
Result<double> rate_of(WriterGuest& writer) {
  double sum = 0;
  for (int second = 0; second < seconds_of_writing; ++second) {
    YADO_ASSIGN(const double rate, writer.rate(), "write");
    sum += rate;
  }
  return sum / seconds_of_writing;
}

Result<Instant> kill(PagingBench& bench, Guest& guest, Death death) {
  if (death == Death::host) return bench.rig.lab().host_silent(guest.servers->servers()[victim]);
  const Instant now = os::now();
  YADO_TRY(guest.servers->kill(victim), "death");
  return now;
}

/// Until the pager knows of the death and every page is again as safe as before.
Result<double> wait_until_safe(const Guest& guest, Instant since) {
  for (const Instant deadline = since + recovery_limit; os::now() < deadline; std::this_thread::sleep_for(look_every)) {
    YADO_ASSIGN(const Holdings now, holdings(*guest.pager), "recovery");
    if (!now.all_alive && now.without_redundancy == 0) return to_ms(os::now() - since) / 1000;
  }
  return fail(Errc::timed_out, "the lost redundancy is not rebuilt after {} s", recovery_limit.count());
}

/// A guest whose pages have no second place ends; never does it go on without them.
Result<double> wait_for_end(const Guest& guest, Instant since) {
  const auto said = guest.vm->console().wait_for("a line that it does not say", recovery_limit);
  if (!said && said.error().code == Errc::application) return to_ms(os::now() - since) / 1000;
  return fail(Errc::corrupt, "the guest goes on without its pages");
}

Result<std::vector<Value>> measure(PagingBench& bench, const WorkDirectories& work, const Policy& policy, Death death) {
  std::vector<Value> values;
  YADO_ASSIGN(Guest guest, start(bench, work, policy), "begin");
  WriterGuest writer(guest.vm->console());
  YADO_TRY(writer.wait_up(), "begin");
  YADO_TRY(writer.fill(), "begin");
  YADO_TRY(writer.rewrite(100), "begin");
  YADO_TRY(writer.standstill(), "begin");

  YADO_ASSIGN(const Traffic wire_before, bench.rig.traffic(), "before");
  YADO_ASSIGN(const double rate, rate_of(writer), "before");
  YADO_ASSIGN(const Traffic wire_after, bench.rig.traffic(), "before");
  YADO_ASSIGN(const Standstill usual, writer.standstill(), "before");
  YADO_ASSIGN(const Holdings held, holdings(*guest.pager), "before");
  values.push_back({"servers_mib", "MiB", mib(static_cast<double>(held.pages * 4_KiB))});
  values.push_back({"write_before_mib_per_s", "MiB/s", rate});
  if (rate > 0) values.push_back({"wire_mib_per_mib_written", "1", mib(static_cast<double>((wire_after - wire_before).wire)) / (rate * seconds_of_writing)});
  values.push_back({"usual_gap_ms", "ms", usual.longest_ms});

  YADO_ASSIGN(const Instant died, kill(bench, guest, death), "death");
  if (!policy.survives) {
    YADO_ASSIGN(const double end_s, wait_for_end(guest, died), "death");
    values.push_back({"ended_after_s", "s", end_s});
    return values;
  }
  YADO_ASSIGN(const double safe_s, wait_until_safe(guest, died), "recovery");
  YADO_ASSIGN(const Standstill stall, writer.standstill(), "recovery");
  YADO_ASSIGN(const double rate_after, rate_of(writer), "after");
  values.push_back({"stall_ms", "ms", stall.longest_ms});
  values.push_back({"stall_away_ms", "ms", stall.away_ms});
  values.push_back({"redundant_again_s", "s", safe_s});
  values.push_back({"write_after_mib_per_s", "MiB/s", rate_after});
  YADO_TRY(writer.rewrite(0), "after");
  YADO_TRY(writer.verify(), "after");
  return values;
}

/// With everything that it needs; the dead host is there again afterwards.
Status measure_one(PagingBench& bench, const Policy& policy, Death death, const std::string& name, int round) {
  Result<std::vector<Value>> values;
  {
    YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(bench.rig), "death");
    values = measure(bench, work, policy, death);
  }
  if (!values) return context(values.error(), fmt::format("{}, {}, round {}", name, policy.name, round));
  if (const HostId& host = bench.rig.hosts().at(victim + 1); !bench.rig.lab().alive(host)) YADO_TRY(bench.rig.lab().boot(host), "death");
  return bench.add({name, policy.name, round, std::move(*values)});
}

}  // namespace

Status measure_deaths(PagingBench& bench) {
  if (!fs::exists(bench.options.guests / "writer/kernel"))
    return fail(Errc::not_found, "no guest at \"{}\": tools/make-guest writer $YADO_GUESTS/writer makes it, ./run bench paging does too", (bench.options.guests / "writer").native());
  for (const Policy& policy : policies) {
    if (!policy.survives) continue;
    for (const char* metric : {"servers_mib", "wire_mib_per_mib_written"}) bench.report.comparisons.push_back({metric, true, policy.name, policies[0].name});
    bench.report.comparisons.push_back({"write_before_mib_per_s", false, policy.name, policies[0].name});
  }
  for (int round = 1; round <= bench.options.repeat; ++round)
    for (const auto& [death, name] : deaths)
      for (const Policy& policy : policies) YADO_TRY(measure_one(bench, policy, death, name, round), "death");
  return {};
}

}  // namespace yado::bench
