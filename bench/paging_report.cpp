#include "paging_report.hpp"

#include <algorithm>

namespace yado::bench {
namespace {

using drill::Row;

/// What is the same in the runs of one row, in the order of its first.
struct Cell {
  std::string scenario, variant, metric, unit;
  std::vector<double> values;
};

/// Behind the other metrics of its case and variant.
void add(std::vector<Cell>& cells, const PagingRun& run, const std::string& metric, const std::string& unit, double value) {
  auto behind = cells.end();
  for (auto cell = cells.begin(); cell != cells.end(); ++cell) {
    if (cell->scenario != run.scenario || cell->variant != run.variant) continue;
    if (cell->metric == metric) return cell->values.push_back(value);
    behind = cell + 1;
  }
  cells.insert(behind, Cell{run.scenario, run.variant, metric, unit, {value}});
}

const double* find(const PagingRun& run, const std::string& metric) {
  for (const Value& one : run.values)
    if (one.metric == metric) return &one.value;
  return nullptr;
}

}  // namespace

std::vector<Row> PagingReport::rows() const {
  std::vector<Cell> cells;
  for (const PagingRun& run : runs)
    for (const Value& one : run.values) add(cells, run, one.metric, one.unit, one.value);
  for (const Comparison& comparison : comparisons)
    for (const PagingRun& run : runs)
      for (const PagingRun& other : runs) {
        if (other.scenario != run.scenario || other.round != run.round || !run.variant.starts_with(comparison.variant) || other.variant.starts_with(comparison.variant)) continue;
        if (!comparison.reference.empty() && other.variant != comparison.reference) continue;
        const double *mine = find(run, comparison.metric), *theirs = find(other, comparison.metric);
        if (!mine || !theirs || *mine <= 0 || *theirs <= 0) continue;
        add(cells, run, fmt::format("{}_times_as_good_as_{}", comparison.metric, other.variant), "1", comparison.less_is_better ? *theirs / *mine : *mine / *theirs);
      }
  std::vector<Row> rows;
  for (const Cell& cell : cells) rows.push_back(drill::summarize(cell.scenario, cell.variant, cell.metric, cell.unit, cell.values));
  return rows;
}

void PagingReport::print() const {
  const std::vector<Row> all = rows();
  const auto unseen = [](std::vector<std::string>& seen, const std::string& name) { return std::ranges::find(seen, name) == seen.end() ? (seen.push_back(name), true) : false; };
  std::vector<std::string> scenarios;
  for (const Row& first : all) {
    if (!unseen(scenarios, first.scenario)) continue;
    std::vector<std::string> variants, metrics;
    for (const Row& row : all)
      if (row.scenario == first.scenario) (void)unseen(variants, row.variant), (void)unseen(metrics, row.metric);
    fmt::print("\n{:<56}", first.scenario);
    for (const std::string& variant : variants) fmt::print("{:>26}", variant);
    for (const std::string& metric : metrics) {
      fmt::print("\n  {:<54}", metric);
      for (const std::string& variant : variants) {
        const auto row = std::ranges::find_if(all, [&](const Row& one) { return one.scenario == first.scenario && one.variant == variant && one.metric == metric; });
        fmt::print("{:>26}", row == all.end() ? "-" : row->n > 1 ? fmt::format("{:.2f} ({:.2f}-{:.2f})", row->median, row->min, row->max) : fmt::format("{:.2f}", row->median));
      }
    }
    fmt::print("\n");
  }
  fmt::print("\nMedians of the rounds, and in brackets the smallest and the largest.\n");
  for (const std::string& line : left_out) fmt::print("Left out: {}\n", line);
}

}  // namespace yado::bench
