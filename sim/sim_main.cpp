// yado-sim --seeds N [--first S] [--trace SEED]: runs seeds, each twice, and says which broke a promise.

#include <cstdio>

#include <CLI/CLI.hpp>

#include "scenario.hpp"

int main(int argc, char** argv) {
  CLI::App app{"Simulates clusters under faults and checks the promises of docs/architecture.md"};
  std::uint64_t seeds = 500, first = 1, trace = 0;
  app.add_option("--seeds", seeds, "how many seeds to run")->capture_default_str();
  app.add_option("--first", first, "the first seed")->capture_default_str();
  bool stop_early = false;
  app.add_flag("--stop-early", stop_early, "stop at the first seed that breaks a promise");
  app.add_option("--trace", trace, "run this one seed and print everything that happens");
  CLI11_PARSE(app, argc, argv);

  if (trace != 0) {
    const auto outcome = yado::sim::run_scenario(trace, true);
    for (const auto& violation : outcome.violations) std::printf("violation: %s\n", violation.c_str());
    return outcome.violations.empty() ? 0 : 1;
  }

  std::uint64_t failed = 0, first_failed = 0, different = 0;
  std::size_t requests = 0, answered = 0, unknown = 0, refused = 0;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    const auto once = yado::sim::run_scenario(seed, false);
    const auto again = yado::sim::run_scenario(seed, false);
    requests += once.requests;
    answered += once.answered;
    unknown += once.unknown;
    refused += once.refused;
    if (once.trace_hash != again.trace_hash) {
      ++different;
      std::printf("seed %lu: two runs differ (%016lx, %016lx)\n", seed, once.trace_hash, again.trace_hash);
    }
    if (once.violations.empty() && once.trace_hash == again.trace_hash) continue;
    if (failed++ == 0) first_failed = seed;
    if (failed <= 5)
      for (const auto& violation : once.violations) std::printf("seed %lu: %s\n", seed, violation.c_str());
    if (stop_early) {
      seeds = seed - first + 1;
      break;
    }
  }
  std::printf("%lu seeds (each run twice), %lu with violations, %lu not repeatable; %zu requests: %zu answered, %zu unknown, "
              "%zu refused\n", seeds, failed, different, requests, answered, unknown, refused);
  if (failed != 0) std::printf("first failing seed: %lu (yado-sim --trace %lu)\n", first_failed, first_failed);
  return failed == 0 ? 0 : 1;
}
