#pragma once
// Where to raise a workload, where to keep its standby, where to keep its image: pure functions of what is seen.

#include <optional>
#include <vector>

#include "model/cluster.hpp"

namespace yado::plan {

/// What the planner looks at, per host.
struct HostView {
  HostId host;
  bool alive = false;
  bool holds_frozen = false;  ///< a frozen standby of this workload stands there
  bool holds_image = false;   ///< a current, acknowledged image lies there
  bool asleep_here = false;   ///< the workload's idle owner is frozen there
  std::uint64_t memory_free_bytes = 0;
  double load = 0;
  std::size_t owners = 0;  ///< how many workloads run there
};

/// The hosts that may run `spec`, best first: those where it is raised fastest (asleep there, frozen, image, cold), then
/// the user's order of preference, then fewest owners, then least load, then name (so that the order is total).
/// Hosts that are not alive, not allowed, too small, or in `excluded` are left out.
std::vector<HostId> rank(const WorkloadSpec& spec, const std::vector<HostView>& hosts,
                         const std::vector<HostId>& excluded);

/// Where a standby or an image belongs: like `rank` for a cold start, without the owner's host.
std::vector<HostId> standby_hosts(const WorkloadSpec& spec, const std::vector<HostView>& hosts, const HostId& owner);

}  // namespace yado::plan
