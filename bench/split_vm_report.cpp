#include "split_vm_report.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "os/file.hpp"

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

/// Above 1: faster than the reference.
struct Ratio {
  const char* name;
  double (*of)(const Outcome&);
  bool of_restore = false;
};
const Ratio ratios[] = {
    {"checkpoint_times_as_fast", [](const Outcome& o) { return o.checkpoint_s; }},
    {"pause_times_as_short", [](const Outcome& o) { return o.standstill.most_ms(); }},
    {"restore_run_times_as_fast", [](const Outcome& o) { return o.restore_run_s; }, true},
    {"restore_all_times_as_fast", [](const Outcome& o) { return o.restore_all_s; }, true},
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

const SplitVmRun* reference_of(const SplitVmRun& run, const std::vector<SplitVmRun>& runs) {
  for (const SplitVmRun& other : runs)
    if (other.variant == reference_variant && other.round == run.round && other.one.load.name() == run.one.load.name()) return &other;
  return nullptr;
}

/// Per round: the reference's value over the run's.
std::vector<double> compared(const Cell& cell, const Ratio& ratio, const std::vector<SplitVmRun>& runs) {
  std::vector<double> values;
  for (const SplitVmRun* run : cell.runs) {
    const SplitVmRun* reference = reference_of(*run, runs);
    if (!reference || ratio.of(run->outcome) <= 0) continue;
    if (ratio.of_restore && !(run->outcome.wrong.empty() && reference->outcome.wrong.empty())) continue;
    values.push_back(ratio.of(reference->outcome) / ratio.of(run->outcome));
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
  for (const Cell& cell : cells_of(runs)) {
    for (const Metric& metric : metrics) {
      std::vector<double> values;
      for (const SplitVmRun* run : cell.runs)
        if (!metric.of_restore || run->outcome.wrong.empty()) values.push_back(metric.of(run->outcome));
      if (!values.empty()) rows.push_back(drill::summarize(cell.name, cell.variant, metric.name, metric.unit, values));
    }
    for (const Ratio& ratio : ratios)
      if (const auto values = compared(cell, ratio, runs); !values.empty() && cell.variant != reference_variant)
        rows.push_back(drill::summarize(cell.name, cell.variant, ratio.name, "1", values));
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
  std::string name;
  for (const Cell& cell : cells_of(runs)) {
    if (cell.name != name)
      fmt::print("\n{}\n{:<24} {:>18} {:>22} {:>10} {:>18} {:>18} {:>18} {:>18} {:>18}\n", name = cell.name, "", "checkpoint s", "pause ms", "p99 ms", "MiB on disks", "MiB on wires",
                 "restore, runs s", "restore, all s", "times as fast");
    fmt::print("{:<24} {:>18} {:>22} {:>10} {:>18} {:>18} {:>18} {:>18} {:>18}\n", cell.variant, shown(cell, "checkpoint_s", 2), shown(cell, "pause_ms", 0), shown(cell, "pause_p99_ms", 1).substr(0, 10),
               shown(cell, "bytes_disk", 0), shown(cell, "bytes_wire", 1), shown(cell, "restore_run_s", 2), shown(cell, "restore_all_s", 2),
               cell.variant == reference_variant ? "1" : shown(cell, "checkpoint_times_as_fast", 2));
  }
  fmt::print("\nMedians, and in brackets the smallest and the largest. Pause: the most that the guest's longest standstill can have been, by its own clock and the CMOS clock together.\n"
             "Times as fast: the checkpoint, against {} of the same round.\n", reference_variant);
  fmt::print("What these disks and links allow (docs/scale.md): {:.2f} times a conventional checkpoint of the split VM, max(hosts, (hosts - 1) * disk / link);\n"
             "{} times one of an ordinary VM.\n", bound, hosts);
  for (const SplitVmRun& run : runs)
    if (!run.outcome.wrong.empty()) fmt::print("WRONG image by {}, {}, round {}: {}\n", run.variant, run.one.name(), run.round, run.outcome.wrong.substr(0, run.outcome.wrong.find('\n')));
  for (const std::string& line : left_out) fmt::print("Left out: {}\n", line);
}

Status SplitVmReport::write_json(const std::filesystem::path& file) const {
  const std::vector<Row> all = rows();
  std::string text = "[\n";
  for (std::size_t i = 0; i < all.size(); ++i) {
    nlohmann::json row = all[i];
    for (const char* number : {"median", "p95", "min", "max"}) row[number] = std::round(row[number].get<double>() * 1000) / 1000;
    row["machine"] = machine;
    text += row.dump() + (i + 1 < all.size() ? ",\n" : "\n");
  }
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  return os::replace_text(file, text + "]\n", 0644);
}

}  // namespace yado::bench
