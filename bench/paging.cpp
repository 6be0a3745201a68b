// ./run bench paging: what it costs that memory lies on other hosts. Its parts are listed in `parts`.

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/units.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "paging_parts.hpp"
#include "rows.hpp"
#include "split_vm_supervise.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

struct Part {
  const char* name;  ///< its cases begin with it
  std::uint32_t hosts;  ///< that it needs
  Status (*measure)(PagingBench&);
};
/// The last one kills hosts.
constexpr Part parts[] = {{"touch", touch_hosts, measure_touches}, {"database", database_hosts, measure_database}, {"restore", restore_hosts, measure_restores}, {"death", death_hosts, measure_deaths}};

struct Options {
  PagingOptions paging;
  std::vector<std::string> only;
  std::uint64_t disk_mib_per_s = 100;
  fs::path results = "bench/results";
  RigOptions rig;
};

bool wanted(const Options& options, const Part& part) {
  return options.only.empty() || std::ranges::find(options.only, part.name) != options.only.end();
}

Status measure_all(const Options& options, const RigDisks& disks, SwapAreas& swap, PagingReport& report) {
  const Progress say;
  report.machine = describe_machine();
  YADO_ASSIGN(Rig rig, Rig::create(options.rig, disks, say), "rig");
  report.machine += "; " + rig.describe() + "; " + swap.describe();
  say(swap.describe());
  std::vector<std::string> kept;  // of the parts that are not measured
  for (const Part& part : parts)
    if (!wanted(options, part)) kept.push_back(part.name);
  PagingBench bench{.options = options.paging, .rig = rig, .swap = swap, .report = report, .say = say,
                    .write = [&] { return write_rows(options.results / "paging.json", report.rows(), report.machine, kept); }};
  for (const Part& part : parts)
    if (wanted(options, part)) YADO_TRY(part.measure(bench), part.name);
  return {};
}

int measure(const Options& options, const RigDisks& disks, SwapAreas& swap) {
  PagingReport report;
  const Status measured = measure_all(options, disks, swap, report);
  report.print();
  if (measured) fmt::print("\nNumbers: {}\n", (options.results / "paging.json").native());
  else fmt::print(stderr, "\npaging: {}\n", measured.error().message);
  std::fflush(stdout);  // this process ends by _exit(2)
  return measured ? 0 : 1;
}

Result<int> run(Options options) {
  if (::geteuid() != 0) return fail(Errc::permission, "paging: needs root: network namespaces, loop devices, swap, userfaultfd");
  options.rig.hosts = 0;
  for (const Part& part : parts)
    if (wanted(options, part)) options.rig.hosts = std::max(options.rig.hosts, part.hosts);
  options.rig.disk_bytes_per_second = options.disk_mib_per_s << 20;
  options.rig.disk_bytes = 1_GiB;  // what the database writes goes into an overlay there
  const Hold hold = [&]() -> Result<std::unique_ptr<Held>> {
    return SwapAreas::create({.backing = options.rig.backing, .run_directory = options.rig.run_directory, .bytes = 2 * (options.paging.memory_mib << 20),
                              .disk_bytes_per_second = options.rig.disk_bytes_per_second});
  };
  return supervise(options.rig, hold, [&](const RigDisks& disks, Held* held) { return measure(options, disks, static_cast<SwapAreas&>(*held)); });
}

int main_of(int argc, char** argv) {
  Options options;
  PagingOptions& paging = options.paging;
  const char* guests = std::getenv("YADO_GUESTS");
  paging.guests = guests ? guests : "";
  std::vector<std::string> names;
  for (const Part& part : parts) names.emplace_back(part.name);
  CLI::App app{"What it costs that memory lies on other hosts: page faults beside swap and beside the network alone, a database, its restore, the death of a memory server.", "./run bench paging"};
  app.add_option("--only", options.only, "These parts; the figures of the others stay as they are")->delimiter(',')->check(CLI::IsMember(names));
  app.add_option("--repeat", paging.repeat, "How often each variant meets each case")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_flag("--quick", paging.quick, "Once, with less memory and fewer cases: to see that it works");
  auto* memory = app.add_option("--memory", paging.memory_mib, "Of the program, MiB")->check(CLI::Range(16, 1 << 20))->capture_default_str();
  app.add_option("--local", paging.local_percent, "Percent of it that fits on its host, each a case of its own (default 100,75,50,25; 100,50 with --quick)")->delimiter(',')->check(CLI::Range(5, 100));
  app.add_option("--disk-rate", options.disk_mib_per_s, "Of every host's disk, and of the one that is swapped to, MiB/s")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--link-rate", options.rig.link_bits_per_second, "Of every host's link, bit/s each way")->capture_default_str();
  app.add_option("--backing", options.rig.backing, "On whose file system the disks are")->capture_default_str();
  app.add_option("--results", options.results, "Where paging.json goes")->type_name("DIR")->capture_default_str();
  if (const auto ended = read_options(app, argc, argv, "paging")) return *ended;
  if (paging.quick) {
    paging.repeat = 1;
    if (memory->empty()) paging.memory_mib = 64;
  }
  if (paging.local_percent.empty()) paging.local_percent = paging.quick ? std::vector<unsigned>{100, 50} : std::vector<unsigned>{100, 75, 50, 25};
  const auto status = run(std::move(options));
  if (status) return *status;
  fmt::print(stderr, "{}\n", status.error().message);
  return 1;
}

}  // namespace
}  // namespace yado::bench

int main(int argc, char** argv) { return yado::bench::main_of(argc, argv); }
