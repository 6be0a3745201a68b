#pragma once
// The parts of `./run bench paging`: each measures its cases in turn and adds to the report.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "paging_report.hpp"
#include "paging_swap.hpp"
#include "split_vm_rig.hpp"

namespace yado::bench {

struct PagingOptions {
  int repeat = 3;
  bool quick = false;
  std::uint64_t memory_mib = 256;       ///< of the program
  std::vector<unsigned> local_percent;  ///< never empty
  std::filesystem::path guests;         ///< of tools/make-guest
};

struct PagingBench {
  const PagingOptions& options;
  Rig& rig;
  SwapAreas& swap;
  PagingReport& report;
  Say say;
  std::function<Status()> write;  ///< what was measured stays measured, whatever comes

  Status add(PagingRun run) {
    std::string values;
    for (const Value& one : run.values) values += fmt::format(", {} {:.2f}{}{}", one.metric, one.value, one.unit == "1" ? "" : " ", one.unit == "1" ? "" : one.unit);
    say(fmt::format("{}/{} {}, {}{}", run.round, options.repeat, run.scenario, run.variant, values));
    report.runs.push_back(std::move(run));
    return write();
  }
};

/// "touch …": a program that touches more memory than it has here, beside swap and beside the network alone.
Status measure_touches(PagingBench& bench);
/// "database …": PostgreSQL in a guest, of whose memory a share is local.
Status measure_database(PagingBench& bench);
/// "restore …": the same goes on from a checkpoint, with and without the order in which its pages were used after it.
Status measure_restores(PagingBench& bench);
/// "death …": a guest that writes, one of whose memory servers dies.
Status measure_deaths(PagingBench& bench);
/// Hosts that each of them needs, the main one included: one memory server gives what one link gives; of four, redundancy (parity, too) can be had again without a dead one.
inline constexpr std::uint32_t touch_hosts = 2, database_hosts = 2, restore_hosts = 2, death_hosts = 5;

}  // namespace yado::bench
