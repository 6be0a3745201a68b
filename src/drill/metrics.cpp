#include "drill/metrics.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

namespace yado::drill {
namespace {

constexpr std::size_t errors_shown = 5;

double rank(const std::vector<double>& sorted, double share) {
  const auto place = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<std::size_t>(place, 1, sorted.size()) - 1];
}

}  // namespace

void to_json(nlohmann::json& json, const Row& row) {
  json = {{"case", row.scenario}, {"variant", row.variant}, {"metric", row.metric}, {"unit", row.unit}, {"n", row.n},
          {"median", row.median}, {"p95", row.p95},         {"min", row.min},       {"max", row.max}};
}

Row summarize(std::string scenario, std::string variant, std::string metric, std::string unit, std::vector<double> values) {
  Row row{std::move(scenario), std::move(variant), std::move(metric), std::move(unit), values.size(), 0, 0, 0, 0};
  if (values.empty()) return row;
  std::ranges::sort(values);
  row.median = rank(values, 0.5);
  row.p95 = rank(values, 0.95);
  row.min = values.front();
  row.max = values.back();
  return row;
}

Seen seen_by_clients(const std::vector<Sample>& samples) {
  Seen seen;
  std::vector<Instant> correct;
  std::optional<Instant> first_due;
  for (const Sample& sample : samples) {
    ++seen.requests;
    seen.slowest = std::max(seen.slowest, sample.took());
    if (!first_due || sample.due < *first_due) first_due = sample.due;
    if (sample.correct) {
      ++seen.correct;
      correct.push_back(sample.ended);
      continue;
    }
    if (sample.unknown)
      ++seen.unknown;
    else
      ++(sample.post ? seen.post_errors : seen.get_errors);
    if (seen.errors.size() < errors_shown)
      seen.errors.push_back(fmt::format("{} #{}: {}", sample.post ? "POST" : "GET", sample.number, sample.error));
  }
  std::ranges::sort(correct);
  Instant last = first_due.value_or(Instant{});
  for (Instant at : correct) {
    seen.gap = std::max(seen.gap, at - last);
    last = at;
  }
  return seen;
}

std::vector<Row> rows_of(const std::string& scenario, const std::string& variant, const std::vector<Run>& runs) {
  const auto of_seen = [&](const char* metric, const char* unit, auto value) {
    std::vector<double> values;
    for (const Run& run : runs) values.push_back(value(run.seen));
    return summarize(scenario, variant, metric, unit, std::move(values));
  };
  const auto of_timeline = [&](const char* metric, nanoseconds Timeline::* phase) {
    std::vector<double> values;
    for (const Run& run : runs)
      if (run.timeline) values.push_back(to_ms((*run.timeline).*phase));
    return summarize(scenario, variant, metric, "ms", std::move(values));
  };
  return {
      of_seen("get_errors", "1", [](const Seen& s) { return static_cast<double>(s.get_errors); }),
      of_seen("errors", "1", [](const Seen& s) { return static_cast<double>(s.get_errors + s.post_errors); }),
      of_seen("unknown_outcomes", "1", [](const Seen& s) { return static_cast<double>(s.unknown); }),
      of_seen("slowest_request", "ms", [](const Seen& s) { return to_ms(s.slowest); }),
      of_seen("service_gap", "ms", [](const Seen& s) { return to_ms(s.gap); }),
      of_timeline("suspect", &Timeline::suspect),
      of_timeline("commit", &Timeline::commit),
      of_timeline("raise", &Timeline::raise),
      of_timeline("ready", &Timeline::ready),
      of_timeline("switch", &Timeline::switched),
      of_timeline("recovery_time", &Timeline::recovery),
  };
}

}  // namespace yado::drill
