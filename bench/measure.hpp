#pragma once
// One demo's measurements, and what is made of them: tables, rows, a picture.

#include <filesystem>
#include <string>
#include <vector>

#include "drill/metrics.hpp"

namespace yado::bench {

/// One injected fault, and what clients saw from just before it until just before the next one.
struct Measured {
  std::string fault, variant;
  int round = 0;
  Instant injected, begin, end;
  drill::Run run;
  std::vector<drill::Sample> samples;  ///< those due in [begin, end)
};

/// "2 cores (Intel …), 24 GiB, Linux 6.18, Debian GNU/Linux 12 (bookworm), load 0.4".
std::string describe_machine();

struct Report {
  std::string application;
  std::string machine;
  std::vector<std::string> faults, variants;  ///< in the order to show them
  std::vector<Measured> runs;

  std::vector<const Measured*> of(const std::string& fault, const std::string& variant) const;
  /// Phase sums that are not the recovery time, and runs without a failover; empty when all is well.
  std::vector<std::string> wrong() const;
  /// Runs in which another way than the standby level's was taken: their times are what clients got, but not what the
  /// level promises.
  std::vector<std::string> detours() const;
  void print() const;
  /// {case, variant, metric, unit, n, median, p95, min, max, machine}, one row per line.
  Status write_json(const std::filesystem::path& file) const;
  /// Response time over time, drawn by gnuplot.
  Status draw(const std::filesystem::path& script, const std::filesystem::path& svg) const;

 private:
  std::vector<double> ratios(const std::string& fault, const std::string& variant) const;
};

}  // namespace yado::bench
