#pragma once
// What split-vm measured, as rows of bench/results/split-vm.json and as a table.

#include <filesystem>
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

/// The variant that all others are compared with, in the same load and round.
inline constexpr const char* reference_variant = "conventional-ordinary";

struct SplitVmReport {
  std::string machine;  ///< computer and rig
  std::uint32_t hosts = 0;
  double bound = 0;     ///< Rig::bound
  std::vector<SplitVmRun> runs;
  std::vector<std::string> left_out;  ///< "variant: why", printed

  /// One row per case, variant and metric: medians over rounds, and how many times as fast as the reference variant.
  std::vector<drill::Row> rows() const;
  void print() const;
  /// {case, variant, metric, unit, n, median, p95, min, max, machine}, one row per line, as demo.json.
  Status write_json(const std::filesystem::path& file) const;
};

/// One line about one run, for the progress.
std::string describe(const Outcome& outcome);

}  // namespace yado::bench
