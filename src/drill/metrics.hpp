#pragma once
// Measurements as the rows that `yado drill --json` and the benchmarks print.

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "drill/timeline.hpp"

namespace yado::drill {

struct Row {
  std::string scenario;  ///< "case" in JSON: application and fault
  std::string variant;   ///< cold, image, frozen
  std::string metric;
  std::string unit;      ///< "ms" or "1"
  std::size_t n = 0;
  double median = 0, p95 = 0, min = 0, max = 0;
};
void to_json(nlohmann::json& json, const Row& row);

/// Nearest-rank percentiles; the values need no order. n = 0: everything 0.
Row summarize(std::string scenario, std::string variant, std::string metric, std::string unit, std::vector<double> values);

/// What clients saw.
struct Seen {
  std::size_t requests = 0, correct = 0;
  std::size_t get_errors = 0, post_errors = 0;  ///< not correct; without the unknown outcomes
  std::size_t unknown = 0;
  nanoseconds slowest{0};
  /// The longest time in which a client that keeps asking got no correct answer: between correct answers, and from
  /// the first due to the first correct one.
  nanoseconds gap{0};
  std::vector<std::string> errors;  ///< the first few, for people
};
Seen seen_by_clients(const std::vector<Sample>& samples);

/// One run.
struct Run {
  Seen seen;
  std::optional<Timeline> timeline;
};
/// One row per metric: errors, unknown_outcomes, slowest_request, and of the runs with a failover suspect, commit, raise,
/// ready, switch, recovery_time.
std::vector<Row> rows_of(const std::string& scenario, const std::string& variant, const std::vector<Run>& runs);

}  // namespace yado::drill
