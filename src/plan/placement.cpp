#include "plan/placement.hpp"

#include <algorithm>
#include <tuple>

namespace yado::plan {
namespace {

/// The position of `host` in the user's order; hosts the user did not name are not allowed once any is named.
std::optional<std::size_t> preference(const WorkloadSpec& spec, const HostId& host) {
  const auto& placement = spec.policy.placement;
  if (placement.empty()) return 0;
  auto found = std::ranges::find(placement, host);
  if (found == placement.end()) return std::nullopt;
  return static_cast<std::size_t>(found - placement.begin());
}

bool fits(const WorkloadSpec& spec, const HostView& host) {
  return host.alive && preference(spec, host.host) && host.memory_free_bytes >= memory_bytes(spec);
}

template <class Key>
std::vector<HostId> sorted(std::vector<const HostView*> hosts, Key key) {
  std::ranges::sort(hosts, [&](const HostView* a, const HostView* b) { return key(*a) < key(*b); });
  std::vector<HostId> names;
  for (const HostView* host : hosts) names.push_back(host->host);
  return names;
}

}  // namespace

std::vector<HostId> rank(const WorkloadSpec& spec, const std::vector<HostView>& hosts,
                         const std::vector<HostId>& excluded) {
  std::vector<const HostView*> candidates;
  for (const HostView& host : hosts)
    if (fits(spec, host) && std::ranges::find(excluded, host.host) == excluded.end()) candidates.push_back(&host);
  auto slowness = [](const HostView& host) {
    return host.asleep_here ? 0 : host.holds_frozen ? 1 : host.holds_image ? 2 : 3;
  };
  return sorted(std::move(candidates), [&](const HostView& host) {
    return std::tuple(slowness(host), *preference(spec, host.host), host.owners, host.load, host.host);
  });
}

std::vector<HostId> standby_hosts(const WorkloadSpec& spec, const std::vector<HostView>& hosts, const HostId& owner) {
  std::vector<const HostView*> candidates;
  for (const HostView& host : hosts)
    if (fits(spec, host) && host.host != owner) candidates.push_back(&host);
  // What already lies somewhere stays there: moving standbys about on every heart-beat's load would help nobody.
  return sorted(std::move(candidates), [&](const HostView& host) {
    return std::tuple(!host.holds_frozen, !host.holds_image, *preference(spec, host.host), host.owners, host.host);
  });
}

}  // namespace yado::plan
