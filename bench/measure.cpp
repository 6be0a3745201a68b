#include "measure.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include <sys/utsname.h>

#include "os/file.hpp"
#include "program.hpp"
#include "rows.hpp"

namespace yado::bench {
namespace fs = std::filesystem;
using drill::Row;
using drill::Timeline;

namespace {

std::string value_of(const std::string& file, const std::string& key) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(key)) {
      std::string value = line.substr(line.find_first_of(":=") + 1);
      std::erase(value, '"');
      return value.substr(std::min(value.size(), value.find_first_not_of(" \t")));
    }
  return "";
}

nanoseconds raise_and_ready(const Timeline& line) { return line.raise + line.ready; }

/// A real run, so that what is printed adds up: the one whose recovery time is the median.
const Measured* typical(std::vector<const Measured*> runs) {
  std::erase_if(runs, [](const Measured* one) { return !one->run.timeline; });
  if (runs.empty()) return nullptr;
  std::ranges::sort(runs, {}, [](const Measured* one) { return one->run.timeline->recovery; });
  return runs[(runs.size() - 1) / 2];
}

const char* meaning_of(const std::string& fault) {
  if (fault == "host-silent") return "the host's link drops both ways, then everything in it is killed";
  if (fault == "process") return "the site's processes are killed, their host lives";
  if (fault == "cut") return "the host's link drops both ways, the host lives on";
  return "";
}

}  // namespace

std::string describe_machine() {
  utsname system{};
  ::uname(&system);
  std::string cpu = value_of("/proc/cpuinfo", "model name");
  double load = 0;
  ::getloadavg(&load, 1);
  const double gib = std::strtod(value_of("/proc/meminfo", "MemTotal").c_str(), nullptr) / (1024 * 1024);
  return fmt::format("{} cores ({}), {:.0f} GiB, Linux {}, {}, load {:.1f} at the start", std::thread::hardware_concurrency(),
                     cpu.empty() ? "unknown" : cpu, gib, system.release, value_of("/etc/os-release", "PRETTY_NAME"), load);
}

std::vector<const Measured*> Report::of(const std::string& fault, const std::string& variant) const {
  std::vector<const Measured*> found;
  for (const Measured& one : runs)
    if (one.fault == fault && one.variant == variant) found.push_back(&one);
  return found;
}

std::vector<std::string> Report::wrong() const {
  std::vector<std::string> all;
  for (const Measured& one : runs) {
    const std::string name = fmt::format("{}, {}, round {}", one.fault, one.variant, one.round);
    if (!one.run.timeline) {
      all.push_back(name + ": no failover was seen");
      continue;
    }
    const Timeline& line = *one.run.timeline;
    const nanoseconds phases[] = {line.suspect, line.commit, line.raise, line.ready, line.switched};
    nanoseconds sum{0};
    for (nanoseconds phase : phases) {
      sum += phase;
      if (phase < 0ns) all.push_back(fmt::format("{}: a phase of {:.1f} ms", name, to_ms(phase)));
    }
    if (sum != line.recovery)
      all.push_back(fmt::format("{}: the phases are {:.3f} ms, the recovery time is {:.3f} ms", name, to_ms(sum), to_ms(line.recovery)));
  }
  return all;
}

std::vector<std::string> Report::detours() const {
  std::vector<std::string> all;
  for (const Measured& one : runs)
    if (one.run.timeline && one.run.timeline->way != one.variant)
      all.push_back(fmt::format("{}, {}, round {}: raised {}", one.fault, one.variant, one.round,
                                one.run.timeline->way.empty() ? "by nobody who said so" : one.run.timeline->way));
  return all;
}

/// Per round, against the cold run of the same round.
std::vector<double> Report::ratios(const std::string& fault, const std::string& variant) const {
  std::vector<double> all;
  for (const Measured* one : of(fault, variant))
    for (const Measured* cold : of(fault, "cold"))
      if (cold->round == one->round && cold->run.timeline && one->run.timeline)
        all.push_back(static_cast<double>(raise_and_ready(*one->run.timeline).count()) /
                      static_cast<double>(raise_and_ready(*cold->run.timeline).count()));
  return all;
}

void Report::print() const {
  for (const std::string& fault : faults) {
    fmt::print("\n{}: {}\n", fault, meaning_of(fault));
    fmt::print("{:<8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>8} {:>7} {:>8}\n", "", "suspect", "commit", "raise", "ready",
               "switch", "recovery", "slowest", "GET", "POST", "unknown");
    fmt::print("{:<8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>8} {:>7} {:>8}\n", "", "ms", "ms", "ms", "ms", "ms", "time ms",
               "request ms", "errors", "errors", "outcomes");
    for (const std::string& variant : variants) {
      const auto all = of(fault, variant);
      const Measured* shown = typical(all);
      if (!shown) {
        fmt::print("{:<8} no failover\n", variant);
        continue;
      }
      nanoseconds slowest{0};
      std::size_t get_errors = 0, post_errors = 0, unknown = 0;
      for (const Measured* one : all) {
        slowest = std::max(slowest, one->run.seen.slowest);
        get_errors += one->run.seen.get_errors, post_errors += one->run.seen.post_errors, unknown += one->run.seen.unknown;
      }
      const Timeline& line = *shown->run.timeline;
      fmt::print("{:<8} {:>9.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>10.1f} {:>10.1f} {:>8} {:>7} {:>8}\n", variant, to_ms(line.suspect),
                 to_ms(line.commit), to_ms(line.raise), to_ms(line.ready), to_ms(line.switched), to_ms(line.recovery), to_ms(slowest),
                 get_errors, post_errors, unknown);
    }
    for (const std::string& variant : variants)
      if (const auto values = ratios(fault, variant); variant != "cold" && !values.empty()) {
        const Row row = drill::summarize("", "", "", "1", values);
        fmt::print("raise + ready, {} / cold: {:.3f} (rounds: {:.3f} to {:.3f})\n", variant, row.median, row.min, row.max);
      }
  }
  fmt::print("\nTimes are of the round with the median recovery time; slowest request, errors and unknown outcomes are of all rounds.\n");
}

Status Report::write_json(const fs::path& file) const {
  std::vector<Row> rows;
  for (const std::string& fault : faults)
    for (const std::string& variant : variants) {
      const std::string scenario = application + " " + fault;
      std::vector<drill::Run> all;
      std::vector<double> posts, sums, errors;
      for (const Measured* one : of(fault, variant)) {
        all.push_back(one->run);
        posts.push_back(static_cast<double>(one->run.seen.post_errors));
        if (!one->run.timeline) continue;
        const Timeline& line = *one->run.timeline;
        sums.push_back(to_ms(raise_and_ready(line)));
        errors.push_back(to_ms(line.suspect + line.commit + line.raise + line.ready + line.switched - line.recovery));
      }
      if (all.empty()) continue;
      for (Row& row : drill::rows_of(scenario, variant, all)) rows.push_back(std::move(row));
      rows.push_back(drill::summarize(scenario, variant, "post_errors", "1", posts));
      rows.push_back(drill::summarize(scenario, variant, "raise_and_ready", "ms", sums));
      rows.push_back(drill::summarize(scenario, variant, "raise_and_ready_ratio_to_cold", "1", ratios(fault, variant)));
      rows.push_back(drill::summarize(scenario, variant, "phase_sum_minus_recovery_time", "ms", errors));
    }
  return write_rows(file, rows, machine);
}

/// The script gets two files: the points, one block per panel ("seconds since the fault, ms, kind"), and titles.
Status Report::draw(const fs::path& script, const fs::path& svg) const {
  std::string points, panels = fmt::format("rows = {}\ncolumns = {}\n", faults.size(), variants.size());
  std::size_t panel = 0, rounds = 0;
  double longest_s = 0, slowest_ms = 1;
  for (const std::string& fault : faults)
    for (const std::string& variant : variants) {
      const auto all = of(fault, variant);
      rounds = std::max(rounds, all.size());
      const Measured* shown = typical(all);
      panels += fmt::format("title_{} = '{}, {}'\nanswer_{} = '{}'\nrecovery_{} = {}\n", panel, fault, variant, panel,
                            shown ? fmt::format("{:.0f} ms", to_ms(shown->run.timeline->recovery)) : "none", panel,
                            shown ? to_ms(shown->run.timeline->recovery) / 1000 : 0.0);
      for (const Measured* one : all) {
        if (one->run.timeline) longest_s = std::max(longest_s, to_ms(one->run.timeline->recovery) / 1000);
        for (const drill::Sample& sample : one->samples) {
          const int kind = sample.unknown ? 2 : !sample.correct ? 3 : sample.post ? 1 : 0;
          points += fmt::format("{:.4f} {:.3f} {}\n", to_ms(sample.due - one->injected) / 1000, to_ms(sample.took()), kind);
          slowest_ms = std::max(slowest_ms, to_ms(sample.took()));
        }
      }
      if (all.empty()) points += "NaN NaN 0\n";
      points += "\n\n";
      ++panel;
    }
  panels += fmt::format("last_s = {:.2f}\nslowest_ms = {}\nrounds = {}\nmachine = \"{}\"\n", std::ceil(longest_s * 4 + 2) / 4, slowest_ms, rounds, machine);
  return run_gnuplot(script, svg, {{"points", points}, {"panels", panels}});
}

}  // namespace yado::bench
