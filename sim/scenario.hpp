#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace yado::sim {

struct Outcome {
  std::vector<std::string> violations;
  std::uint64_t trace_hash = 0;
  std::size_t requests = 0, answered = 0, unknown = 0, refused = 0;
};

/// One run: a random cluster, random workloads, random load and random faults for a while (safety), then none, and after
/// a bounded time everything must be as wanted (liveness).
Outcome run_scenario(std::uint64_t seed, bool trace);

}  // namespace yado::sim
