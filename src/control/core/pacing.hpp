#pragma once
// Shared by the parts of ControlCore: how long to wait for whom, and who is wanted at all.

#include <algorithm>

#include "control/core/records.hpp"

namespace yado::control {

inline constexpr std::uint8_t control_granter = 0;
// Pauses after failures, so that a workload that cannot start does not keep every host busy.
inline constexpr milliseconds first_pause = 1s;
inline constexpr milliseconds longest_pause = 60s;

inline milliseconds pause_after(int failures) {
  return std::min(longest_pause, first_pause * (1 << std::min(failures, 6)));
}

/// A raise may try three ways, each within the start limit.
inline nanoseconds raise_limit(const WorkloadSpec& spec) { return 3 * spec.service.ready.start_limit + 5s; }
/// A build starts, dumps and restores; a copy moves as many bytes as the image has: both are bounded by patience only.
inline nanoseconds side_limit(const WorkloadSpec& spec) { return 4 * spec.service.ready.start_limit + 60s; }

/// Copies and merges keep to what their host gives to its background, 1 MiB/s at least.
inline nanoseconds background_limit(const WorkloadSpec& spec) {
  return side_limit(spec) + seconds(spec.kind == Kind::vm ? spec.vm.memory_bytes >> 20 : 0);
}

/// All of a memory may have to move, beside whatever else its links and hosts do; a slower one is asked again, and goes on where it is.
inline nanoseconds resplit_limit(const WorkloadSpec& spec) {
  constexpr std::uint64_t slow = 4 << 20;  // bytes a second
  return 60s + seconds(spec.vm.memory_bytes / slow);
}

inline bool wants_owner(const Record& record) { return !record.removed && !record.stopped; }

}  // namespace yado::control
