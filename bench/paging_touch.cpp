// One and the same program touches its memory, of which a share fits: page by page in order, and at random.

#include <algorithm>
#include <optional>

#include "base/units.hpp"
#include "paging_parts.hpp"
#include "paging_ping.hpp"
#include "paging_program.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t hosts = 2;  // one memory server: what one link gives
constexpr int pings = 2000;
constexpr int random_limit_ms = 3000;  // of one measurement of random touches
constexpr double tolerance = 1.25;     // as of the rig's disks

double mib(double bytes) { return bytes / static_cast<double>(1_MiB); }

struct Contents {
  const char* name;
  int incompressible_percent;  ///< of every page's words; the others repeat one word
};
constexpr Contents all_contents[] = {{"incompressible", 100}, {"compressible", 33}};

struct Way {
  std::string name;
  std::optional<std::uint32_t> pager_prefetch;  ///< pages at most per fault; none: no pager
  std::optional<SwapKind> swap;
  std::optional<int> page_cluster;
};

/// Each with what it fetches by default and with one page per fault, which is best for touches at random. (The kernel reads nothing ahead from zram.)
std::vector<Way> all_ways() {
  return {{.name = "yado", .pager_prefetch = pager::ServiceConfig().prefetch_pages, .swap = {}, .page_cluster = {}},
          {.name = "yado-1page", .pager_prefetch = 1, .swap = {}, .page_cluster = {}},
          {.name = "zram", .pager_prefetch = {}, .swap = SwapKind::zram, .page_cluster = {}},
          {.name = "disk", .pager_prefetch = {}, .swap = SwapKind::disk, .page_cluster = {}},
          {.name = "disk-1page", .pager_prefetch = {}, .swap = SwapKind::disk, .page_cluster = 0}};
}

/// All fits: the program alone, and under a pager that has nothing to do.
std::vector<Way> ways_when_all_is_local() {
  return {{.name = "alone", .pager_prefetch = {}, .swap = {}, .page_cluster = {}}, all_ways().front()};
}

struct Case {
  Contents contents;
  unsigned local_percent = 0;
  std::uint64_t memory_bytes = 0;
  std::string name() const { return fmt::format("touch {}, {} % local", contents.name, local_percent); }
  std::uint64_t local_bytes() const { return memory_bytes * local_percent / 100 / 4_KiB * 4_KiB; }
};

/// What the program needs beside it. Ends behind it, in the right order.
struct Below {
  SwapAreas* swap = nullptr;
  std::optional<SplitHosts> servers;
  std::optional<vm::PagerProcess> pager;
  ~Below() {
    if (swap)
      if (const Status off = swap->off(); !off) fmt::print(stderr, "{}\n", off.error().message);
  }
};

Status raise(PagingBench& bench, const WorkDirectories& work, const Case& one, const Way& way, Below& below) {
  if (way.swap) {
    below.swap = &bench.swap;
    YADO_TRY(bench.swap.on(*way.swap, way.page_cluster), way.name);
    if (*way.swap == SwapKind::disk) YADO_TRY(bench.swap.limit_disk(bench.rig.lab().cgroup(bench.rig.hosts().front())), way.name);
  }
  if (!way.pager_prefetch) return {};
  YADO_ASSIGN(SplitHosts servers, SplitHosts::start(bench.rig, work, hosts, one.memory_bytes), way.name);
  below.servers.emplace(std::move(servers));
  vm::Paging paging = below.servers->paging(*way.pager_prefetch);
  paging.config.local_bytes = one.local_bytes();
  YADO_ASSIGN(vm::PagerProcess pager, vm::PagerProcess::start(paging, work.of(0), one.memory_bytes), way.name);
  below.pager.emplace(std::move(pager));
  return {};
}

/// The disk below the swap is as slow as it should be, or its figures say nothing.
Status check_rate(const PagingBench& bench, std::uint64_t bytes, double seconds) {
  const double rate = static_cast<double>(bytes) / seconds, limit = static_cast<double>(bench.rig.options().disk_bytes_per_second);
  if (rate > limit * tolerance) return fail(Errc::conflict, "swap took {:.0f} MiB/s on a disk limited to {:.0f}", mib(rate), mib(limit));
  return {};
}

void add_touches(std::vector<Value>& values, const std::string& what, TouchProgram::Answer& said) {
  if (said["faults"] > 0) {
    values.push_back({what + "_fault_p50_us", "us", said["p50_ns"] / 1000});
    values.push_back({what + "_fault_p99_us", "us", said["p99_ns"] / 1000});
    values.push_back({what + "_fault_max_us", "us", said["max_ns"] / 1000});
  }
  values.push_back({what + "_faults_percent", "%", 100 * said["faults"] / said["touches"]});
  values.push_back({what + "_mib_per_s", "MiB/s", mib(said["touches"] * 4096) / (said["us"] / 1e6)});
}

Result<std::vector<Value>> measure(PagingBench& bench, const WorkDirectories& work, const Case& one, const Way& way) {
  Below below;
  YADO_TRY(raise(bench, work, one, way, below), "begin");
  YADO_ASSIGN(TouchProgram program, TouchProgram::start(one.memory_bytes, bench.rig.cgroup(bench.rig.hosts().front(), "touch"), below.pager ? &*below.pager : nullptr), "begin");
  if (way.swap) YADO_TRY(program.limit(one.local_bytes()), "begin");
  YADO_ASSIGN(const Traffic wire_before, bench.rig.traffic(), "begin");
  const bool on_disk = way.swap == SwapKind::disk;
  LimitedDisk::Moved disk_before;
  if (on_disk) {
    YADO_ASSIGN(disk_before, bench.swap.disk().moved(), "begin");
  }

  std::vector<Value> values;
  YADO_ASSIGN(auto filled, program.ask(fmt::format("fill {}", one.contents.incompressible_percent)), way.name);
  values.push_back({"fill_mib_per_s", "MiB/s", mib(static_cast<double>(one.memory_bytes)) / (filled["us"] / 1e6)});
  YADO_ASSIGN(auto passed, program.ask("pass"), way.name);
  add_touches(values, "pass", passed);
  const std::uint64_t pages = one.memory_bytes / 4_KiB;
  YADO_ASSIGN(auto read, program.ask(fmt::format("random {} {} 0", pages, random_limit_ms)), way.name);
  add_touches(values, "random_read", read);
  YADO_ASSIGN(auto written, program.ask(fmt::format("random {} {} 50", pages, random_limit_ms)), way.name);
  add_touches(values, "random_write", written);

  if (way.pager_prefetch) {
    YADO_ASSIGN(const Traffic wire_after, bench.rig.traffic(), "end");
    values.push_back({"wire_mib", "MiB", mib(static_cast<double>((wire_after - wire_before).wire))});
  }
  if (way.swap == SwapKind::zram) {
    YADO_ASSIGN(const ZramUse use, bench.swap.zram_use(), "end");
    if (use.stored > 0) values.push_back({"memory_taken_percent", "%", 100 * static_cast<double>(use.taken) / static_cast<double>(use.stored)});
  }
  if (on_disk) {
    YADO_ASSIGN(const LimitedDisk::Moved after, bench.swap.disk().moved(), "end");
    const double seconds = (filled["us"] + passed["us"] + read["us"] + written["us"]) / 1e6;
    YADO_TRY(check_rate(bench, std::max(after.written - disk_before.written, after.read - disk_before.read), seconds), way.name);
    values.push_back({"disk_mib", "MiB", mib(static_cast<double>(after.written - disk_before.written + after.read - disk_before.read))});
  }
  return values;
}

/// Those by TLS, which is what the pager has.
Result<RoundTrips> measure_round_trips(PagingBench& bench, int round) {
  YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(bench.rig), "round trip");
  RoundTrips trips;
  for (const bool tls : {false, true}) {
    YADO_ASSIGN(trips, ping_pages(bench.rig, work, tls, pings), "round trip");
    YADO_TRY(bench.add({"touch: round trip of one page", tls ? "tls" : "tcp", round, {{"p50_us", "us", trips.p50_us}, {"p99_us", "us", trips.p99_us}}}), "results");
  }
  return trips;
}

}  // namespace

Status measure_touches(PagingBench& bench) {
  for (const char* metric : {"random_read_fault_p50_us", "random_read_fault_p99_us", "random_write_fault_p50_us"}) bench.report.comparisons.push_back({metric, true, "yado", {}});
  for (const char* metric : {"pass_mib_per_s", "random_read_mib_per_s"}) bench.report.comparisons.push_back({metric, false, "yado", {}});
  for (const auto& [kind, name] : {std::pair(SwapKind::zram, "zram"), std::pair(SwapKind::disk, "disk")})
    if (const std::string why = bench.swap.why_not(kind); !why.empty()) bench.report.left_out.push_back(fmt::format("swap to {}: {}", name, why));

  for (int round = 1; round <= bench.options.repeat; ++round) {
    YADO_ASSIGN(const RoundTrips trips, measure_round_trips(bench, round), "touch");
    for (const Contents& contents : all_contents)
      for (const unsigned percent : bench.options.local_percent) {
        const Case one{contents, percent, bench.options.memory_mib << 20};
        for (const Way& way : percent == 100 ? ways_when_all_is_local() : all_ways()) {
          if (way.swap && !bench.swap.why_not(*way.swap).empty()) continue;
          YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(bench.rig), "touch");
          auto values = measure(bench, work, one, way);
          if (!values) return context(values.error(), fmt::format("{}, {}, round {}", one.name(), way.name, round));
          for (const Value& value : std::vector<Value>(*values))
            if (value.metric == "random_read_fault_p50_us" && way.pager_prefetch) values->push_back({"random_read_fault_p50_round_trips", "1", value.value / trips.p50_us});
          YADO_TRY(bench.add({one.name(), way.name, round, std::move(*values)}), "results");
        }
      }
  }
  return {};
}

}  // namespace yado::bench
