#include "split_vm_report.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include "base/units.hpp"
#include "rows.hpp"

namespace yado::bench {
namespace {

using drill::Row;

double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(1_MiB); }

struct Metric {
  const char* name;
  const char* unit;
  double (*of)(const Outcome&);
  bool of_restore = false;  ///< only of images that are right
};

const Metric metrics[] = {
    {"checkpoint_s", "s", [](const Outcome& o) { return o.checkpoint_s; }},
    {"pause_ms", "ms", [](const Outcome& o) { return o.standstill.most_ms(); }},
    {"pause_away_ms", "ms", [](const Outcome& o) { return o.standstill.away_ms; }},
    {"pause_own_clock_ms", "ms", [](const Outcome& o) { return o.standstill.longest_ms; }},
    {"pause_p99_ms", "ms", [](const Outcome& o) { return o.standstill.p99_ms; }},
    {"bytes_image", "MiB", [](const Outcome& o) { return mib(o.bytes_image); }},
    {"bytes_disk", "MiB", [](const Outcome& o) { return mib(o.checkpoint.disk_written); }},
    {"bytes_wire", "MiB", [](const Outcome& o) { return mib(o.checkpoint.wire); }},
    {"wrong_images", "1", [](const Outcome& o) { return o.wrong.empty() ? 0.0 : 1.0; }},
    {"restore_run_s", "s", [](const Outcome& o) { return o.restore_run_s; }, true},
    {"restore_all_s", "s", [](const Outcome& o) { return o.restore_all_s; }, true},
    {"restore_gap_ms", "ms", [](const Outcome& o) { return o.restore_gap_ms; }, true},
};

/// What others are compared with, by its name in the figures.
struct Reference {
  std::string name;
  std::string variant;
  std::optional<std::uint64_t> prefetch_bytes;  ///< of it; none: the size with which it was the fastest that round
};

/// The conventional ways, and of a split VM the one with every prefetch size by itself, and the best.
std::vector<Reference> references_of(const std::vector<SplitVmRun>& runs) {
  std::vector<Reference> references = {{"conventional-ordinary", "conventional-ordinary", 0}, {"mapped-ram", "mapped-ram", 0}};
  std::set<std::uint64_t> sizes;
  for (const SplitVmRun& run : runs)
    if (run.one.prefetch_bytes > 0) sizes.insert(run.one.prefetch_bytes);
  for (const std::uint64_t size : sizes) references.push_back({fmt::format("conventional-split-{}KiB", size >> 10), "conventional-split", size});
  references.push_back({"conventional-split-best", "conventional-split", std::nullopt});
  return references;
}

/// Named "NAME_as_REFERENCE"; above 1: faster than the reference.
const Metric ratios[] = {
    {"checkpoint_times_as_fast", "1", [](const Outcome& o) { return o.checkpoint_s; }},
    {"pause_times_as_short", "1", [](const Outcome& o) { return o.standstill.most_ms(); }},
    {"restore_run_times_as_fast", "1", [](const Outcome& o) { return o.restore_run_s; }, true},
    {"restore_all_times_as_fast", "1", [](const Outcome& o) { return o.restore_all_s; }, true},
};

/// The runs of one case and variant, in the order of their rounds.
struct Cell {
  std::string name, variant;
  std::vector<const SplitVmRun*> runs;
};

std::vector<Cell> cells_of(const std::vector<SplitVmRun>& runs) {
  std::vector<Cell> cells;
  for (const SplitVmRun& run : runs) {
    const std::string name = run.one.name();
    auto found = std::ranges::find_if(cells, [&](const Cell& cell) { return cell.name == name && cell.variant == run.variant; });
    if (found == cells.end()) found = cells.insert(cells.end(), Cell{name, run.variant, {}});
    found->runs.push_back(&run);
  }
  return cells;
}

/// Of the same round and load, and over as many hosts when it is split.
const SplitVmRun* find_reference(const SplitVmRun& run, const Reference& reference, const std::vector<SplitVmRun>& runs) {
  const SplitVmRun* found = nullptr;
  for (const SplitVmRun& other : runs)
    if (other.variant == reference.variant && other.round == run.round && other.one.load.name() == run.one.load.name() &&
        (other.one.hosts == 0 || other.one.hosts == run.one.hosts) && (!reference.prefetch_bytes || other.one.prefetch_bytes == *reference.prefetch_bytes) &&
        (!found || other.outcome.checkpoint_s < found->outcome.checkpoint_s))
      found = &other;
  return found;
}

/// Per round: the reference's value over the run's.
std::vector<double> compared(const Cell& cell, const Metric& ratio, const Reference& reference, const std::vector<SplitVmRun>& runs) {
  std::vector<double> values;
  for (const SplitVmRun* run : cell.runs) {
    const SplitVmRun* other = find_reference(*run, reference, runs);
    if (!other || ratio.of(run->outcome) <= 0) continue;
    if (ratio.of_restore && !(run->outcome.wrong.empty() && other->outcome.wrong.empty())) continue;
    values.push_back(ratio.of(other->outcome) / ratio.of(run->outcome));
  }
  return values;
}

}  // namespace

std::string describe(const Outcome& o) {
  return fmt::format("checkpoint {:.2f} s, pause {:.0f} ms (p99 {:.1f}), {:.0f} MiB on disks, {:.1f} on wires; {}", o.checkpoint_s, o.standstill.most_ms(), o.standstill.p99_ms,
                     mib(o.checkpoint.disk_written), mib(o.checkpoint.wire),
                     o.wrong.empty() ? fmt::format("restore {:.2f} s to run, {:.2f} s all", o.restore_run_s, o.restore_all_s) : "the image is WRONG");
}

std::vector<Row> SplitVmReport::rows() const {
  std::vector<Row> rows;
  const std::vector<Reference> references = references_of(runs);
  for (const Cell& cell : cells_of(runs)) {
    for (const Metric& metric : metrics) {
      std::vector<double> values;
      for (const SplitVmRun* run : cell.runs)
        if (!metric.of_restore || run->outcome.wrong.empty()) values.push_back(metric.of(run->outcome));
      if (!values.empty()) rows.push_back(drill::summarize(cell.name, cell.variant, metric.name, metric.unit, values));
    }
    for (const Metric& ratio : ratios)
      for (const Reference& reference : references)
        if (const auto values = compared(cell, ratio, reference, runs); !values.empty() && cell.variant != reference.variant)
          rows.push_back(drill::summarize(cell.name, cell.variant, fmt::format("{}_as_{}", ratio.name, reference.name), ratio.unit, values));
  }
  return rows;
}

void SplitVmReport::print() const {
  const std::vector<Row> all = rows();
  const auto shown = [&](const Cell& cell, const std::string& metric, int digits) -> std::string {
    for (const Row& row : all)
      if (row.scenario == cell.name && row.variant == cell.variant && row.metric == metric)
        return row.n > 1 ? fmt::format("{:.{}f} ({:.{}f}-{:.{}f})", row.median, digits, row.min, digits, row.max, digits) : fmt::format("{:.{}f}", row.median, digits);
    return "-";
  };
  struct Column {
    std::string title, metric;
    int digits;  // behind the point
  };
  const std::vector<Column> columns = {{"checkpoint s", "checkpoint_s", 2}, {"pause ms", "pause_ms", 0}, {"p99 ms", "pause_p99_ms", 1}, {"MiB on disks", "bytes_disk", 0},
                                 {"MiB on wires", "bytes_wire", 1}, {"restore, runs s", "restore_run_s", 2}, {"restore, all s", "restore_all_s", 2}};
  const auto print_table = [&](const std::vector<Column>& wanted) {
    std::string name;
    for (const Cell& cell : cells_of(runs)) {
      const bool empty = std::ranges::all_of(wanted, [&](const Column& column) { return shown(cell, column.metric, column.digits) == "-"; });
      if (empty) continue;
      if (cell.name != name) {
        fmt::print("\n{:<38}", name = cell.name);
        for (const Column& column : wanted) fmt::print("{:>19}", column.title);
        fmt::print("\n");
      }
      fmt::print("  {:<36}", cell.variant);
      for (const Column& column : wanted) fmt::print("{:>19}", shown(cell, column.metric, column.digits));
      fmt::print("\n");
    }
  };
  print_table(columns);
  fmt::print("\nMedians, and in brackets the smallest and the largest. Pause: the most that the guest's longest standstill can have been, by its own clock and the\n"
             "CMOS clock together.\n\nHow many times as fast as that way of the same round the checkpoint was:\n");
  std::vector<Column> ratio_columns;
  for (const Reference& reference : references_of(runs)) {
    std::string title = reference.name;
    if (title.starts_with("conventional-")) title.erase(0, std::string_view("conventional-").size());
    ratio_columns.push_back({title, fmt::format("{}_as_{}", ratios[0].name, reference.name), 2});
  }
  print_table(ratio_columns);
  fmt::print("\n");
  for (const auto& [hosts, bound] : bounds)
    fmt::print("What disks and links allow with {} hosts (docs/scale.md): {:.2f} times a conventional checkpoint of the split VM, max(hosts, (hosts - 1) * disk / link);\n"
               "{} times one of an ordinary VM.\n", hosts, bound, hosts);
  for (const SplitVmRun& run : runs)
    if (!run.outcome.wrong.empty()) fmt::print("WRONG image by {}, {}, round {}: {}\n", run.variant, run.one.name(), run.round, run.outcome.wrong.substr(0, run.outcome.wrong.find('\n')));
  for (const std::string& line : left_out) fmt::print("Left out: {}\n", line);
}

Status SplitVmReport::write_json(const std::filesystem::path& file) const {
  return write_rows(file, rows(), machine);
}

}  // namespace yado::bench
