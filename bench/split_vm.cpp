// ./run bench split-vm: one and the same writing guest is checkpointed and restored in several ways, on hosts whose links and disks
// have one rate each. The variants take turns (A B A B …), so that what else happens on this machine hits all alike.

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/units.hpp"
#include "measure.hpp"
#include "options.hpp"
#include "split_vm_report.hpp"
#include "split_vm_supervise.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

struct Options {
  int repeat = 3;
  bool quick = false;
  std::uint64_t memory_mib = 256, disk_mib_per_s = 100;
  std::vector<std::uint32_t> hosts;
  std::vector<std::uint64_t> prefetch_kib;
  std::vector<std::string> only;
  std::vector<unsigned> live_percent;
  fs::path results = "bench/results";
  RigOptions rig;
  fs::path guest, qemu = vm::Qemu().system, new_qemu;
};

constexpr std::uint64_t images_in_memories = 6;  // room on a host's disk, in guest memories: a live checkpoint writes some pages again

std::vector<std::unique_ptr<Variant>> make_variants(const VariantOptions& options) {
  std::vector<std::unique_ptr<Variant>> all;
  all.push_back(conventional_ordinary(options));
  all.push_back(mapped_ram(options));
  all.push_back(conventional_split(options));
  for (const bool incremental : {false, true}) all.push_back(parallel_split(options, incremental));
  return all;
}

std::vector<Load> loads_of(const Options& options) {
  std::vector<unsigned> shares = options.live_percent;
  if (shares.empty()) shares = options.quick ? std::vector<unsigned>{10} : std::vector<unsigned>{10, 50};
  std::vector<Load> loads = {{.live = false, .share_percent = 0}};
  for (const unsigned share : shares) loads.push_back({.live = true, .share_percent = share});
  return loads;
}

struct Split {
  std::uint32_t hosts = 0;
  std::uint64_t prefetch_bytes = 0;
};
/// Never empty.
std::vector<Split> splits_of(const Options& options) {
  std::vector<Split> splits;
  for (const std::uint32_t hosts : options.hosts)
    for (const std::uint64_t kib : options.prefetch_kib) splits.push_back({hosts, kib << 10});
  return splits;
}

/// Those that are asked for and can be measured here; the report gets the reasons of the others.
Result<std::vector<std::unique_ptr<Variant>>> choose_variants(const Options& options, const VariantOptions& wanted, SplitVmReport& report) {
  std::vector<std::unique_ptr<Variant>> chosen;
  std::string names;
  for (auto& variant : make_variants(wanted)) {
    names += (names.empty() ? "" : ", ") + variant->name();
    if (!options.only.empty() && std::ranges::find(options.only, variant->name()) == options.only.end()) continue;
    if (const std::string why = variant->why_not(); why.empty()) chosen.push_back(std::move(variant));
    else report.left_out.push_back(fmt::format("{}: {}", variant->name(), why));
  }
  if (chosen.empty()) return fail(Errc::not_found, "none is left to measure; there are: {}", names);
  return chosen;
}

Result<SplitVmReport> measure_all(const Options& options, const RigDisks& disks) {
  const Progress say;
  VariantOptions wanted{.guest = options.guest, .memory_bytes = options.memory_mib << 20, .qemu = {}, .new_qemu = options.new_qemu};
  wanted.qemu.system = options.qemu;
  wanted.qemu.accelerator = vm::choose_accelerator();
  say(fmt::format("a guest of {} MiB under {}: {}", options.memory_mib, vm::name_of(wanted.qemu.accelerator.kind), wanted.qemu.accelerator.why));
  SplitVmReport report{.machine = describe_machine(), .runs = {}, .left_out = {}};
  YADO_ASSIGN(Rig rig, Rig::create(options.rig, disks, say), "rig");
  report.machine += "; " + rig.describe();
  for (const std::uint32_t hosts : options.hosts) report.bounds[hosts] = rig.bound(hosts);

  YADO_ASSIGN(const auto variants, choose_variants(options, wanted, report), "variants");
  for (const std::string& line : report.left_out) say("left out: " + line);
  const std::vector<Split> splits = splits_of(options);
  const int rounds = options.quick ? 1 : options.repeat;
  for (int round = 1; round <= rounds; ++round)
    for (const Load& load : loads_of(options))
      for (const Split& split : splits)
        for (const auto& variant : variants) {
          // What does not split is measured once per load, and what needs no prefetch once per number of hosts.
          if (!variant->splits() && &split != &splits.front()) continue;
          if (!variant->prefetches() && split.prefetch_bytes != splits.front().prefetch_bytes) continue;
          const Case one{.load = load, .hosts = variant->splits() ? split.hosts : 0, .prefetch_bytes = variant->prefetches() ? split.prefetch_bytes : 0};
          auto outcome = variant->measure(rig, one);
          if (!outcome) return context(outcome.error(), fmt::format("{}, {}, round {}", variant->name(), one.name(), round));
          say(fmt::format("{}/{} {}, {}: {}", round, rounds, one.name(), variant->name(), describe(*outcome)));
          report.runs.push_back({one, variant->name(), round, *outcome});
          // At once: what was measured stays measured, whatever comes.
          YADO_TRY(report.write_json(options.results / "split-vm.json"), "results");
        }
  return report;
}

int measure(const Options& options, const RigDisks& disks) {
  const auto report = measure_all(options, disks);
  if (!report) {
    fmt::print(stderr, "split-vm: {}\n", report.error().message);
    return 1;
  }
  report->print();
  fmt::print("\nNumbers: {}\n", (options.results / "split-vm.json").native());
  std::fflush(stdout);  // this process ends by _exit(2)
  return 0;
}

Status check(const Options& options) {
  if (::geteuid() != 0) return fail(Errc::permission, "needs root: network namespaces, loop devices and limits of disks");
  if (::access((options.guest / "kernel").c_str(), R_OK) != 0)
    return fail(Errc::not_found, "no guest at \"{}\": tools/make-guest writer $YADO_GUESTS/writer makes it, ./run bench split-vm does too", options.guest.native());
  return {};
}

Result<int> run(Options options) {
  YADO_TRY(check(options), "split-vm");
  if (options.hosts.empty()) options.hosts = options.quick ? std::vector<std::uint32_t>{2} : std::vector<std::uint32_t>{2, 4};
  if (options.prefetch_kib.empty()) options.prefetch_kib = options.quick ? std::vector<std::uint64_t>{4, 256, 2048} : std::vector<std::uint64_t>{4, 64, 256, 1024, 2048};
  options.rig.hosts = *std::ranges::max_element(options.hosts);
  options.rig.disk_bytes_per_second = options.disk_mib_per_s << 20;
  options.rig.disk_bytes = (options.memory_mib << 20) * images_in_memories;
  return supervise(options.rig, {}, [&](const RigDisks& disks, Held*) { return measure(options, disks); });
}

int main_of(int argc, char** argv) {
  Options options;
  const char* guests = std::getenv("YADO_GUESTS");
  const char* new_qemu = std::getenv("YADO_NEW_QEMU");
  options.guest = fs::path(guests ? guests : "") / "writer";
  options.new_qemu = new_qemu ? new_qemu : "";
  CLI::App app{"Checkpoint and restore of a guest that writes: conventional ways and ours, on hosts whose links and disks are limited alike.", "./run bench split-vm"};
  app.add_option("--repeat", options.repeat, "How often each variant meets each case")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_flag("--quick", options.quick, "Once, and without the heaviest load");
  app.add_option("--memory", options.memory_mib, "Of the guest, MiB")->check(CLI::Range(256, 1 << 20))->capture_default_str();
  app.add_option("--hosts", options.hosts, "Over how many a split VM's memory lies, each a case of its own (default 2,4; 2 with --quick)")->delimiter(',')->check(CLI::Range(2, 16));
  app.add_option("--disk-rate", options.disk_mib_per_s, "Of every host's disk, MiB/s")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--link-rate", options.rig.link_bits_per_second, "Of every host's link, bit/s each way")->capture_default_str();
  app.add_option("--prefetch", options.prefetch_kib, "KiB per fault of a conventional checkpoint of a split VM, each a case of its own (default 4,64,256,1024,2048; 4,256,2048 with --quick)")->delimiter(',')->check(CLI::Range(4, 2048));
  app.add_option("--live", options.live_percent, "Percent of its memory that the guest rewrites during a live checkpoint, each a case of its own")->delimiter(',')->check(CLI::Range(1, 100));
  app.add_option("--qemu", options.qemu, "Of the VMs, but for mapped-ram")->type_name("PATH")->capture_default_str();
  app.add_option("--only", options.only, "These variants")->delimiter(',');
  app.add_option("--backing", options.rig.backing, "On whose file system the hosts' disks are")->capture_default_str();
  app.add_option("--results", options.results, "Where split-vm.json goes")->type_name("DIR")->capture_default_str();
  if (const auto ended = read_options(app, argc, argv, "split-vm")) return *ended;
  const auto status = run(std::move(options));
  if (status) return *status;
  fmt::print(stderr, "{}\n", status.error().message);
  return 1;
}

}  // namespace
}  // namespace yado::bench

int main(int argc, char** argv) { return yado::bench::main_of(argc, argv); }
