#pragma once
// What split-vm measured, as rows of bench/results/split-vm.json and as a table.

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "drill/metrics.hpp"
#include "split_vm_variant.hpp"

namespace yado::bench {

struct SplitVmRun {
  Case one;
  std::string variant;
  int round = 0;
  Outcome outcome;
};

struct SplitVmReport {
  std::string machine;  ///< computer and rig
  std::map<std::uint32_t, double> bounds;  ///< by number of hosts: Rig::bound
  std::vector<SplitVmRun> runs;
  std::vector<std::string> left_out;  ///< "variant: why", printed

  /// One row per case, variant and metric: medians over rounds; and how many times as fast as conventional ways, of
  /// the same load and round.
  std::vector<drill::Row> rows() const;
  void print() const;
  /// {case, variant, metric, unit, n, median, p95, min, max, machine}, one row per line, as demo.json.
  Status write_json(const std::filesystem::path& file) const;
};

/// One line about one run, for the progress.
std::string describe(const Outcome& outcome);

}  // namespace yado::bench
