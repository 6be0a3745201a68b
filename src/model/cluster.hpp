#pragma once
// What is seen of the cluster: hosts, instances, images. Values that agents report and control keeps.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/time.hpp"
#include "model/ids.hpp"
#include "model/workload.hpp"

namespace yado {

/// An IPv4 or IPv6 address in text and a TCP port.
struct Endpoint {
  std::string address;
  std::uint16_t port = 0;
  auto operator<=>(const Endpoint&) const = default;
};

/// The ways of starting an instance, slowest first.
enum class Way { cold, image, frozen };

enum class InstanceState {
  starting,  ///< being started, restored or thawed; not ready yet
  running,
  frozen,  ///< a standby, or asleep
  exited,
};

/// What an instance is for. Only an `owner` may be routed to, and only it holds an epoch.
enum class Purpose { owner, standby, builder };

struct InstanceReport {
  InstanceId id;
  WorkloadId workload;
  Purpose purpose = Purpose::owner;
  Epoch epoch;  ///< of an owner; 0 for the others
  InstanceState state = InstanceState::starting;
  Endpoint endpoint;           ///< where the gate reaches it: the host's address and a published port
  std::optional<ImageId> image;  ///< what it was restored from
  milliseconds age{0};         ///< since it was started, restored or last refreshed
  std::string how;             ///< for people: how it has exited, or why it stands still although it runs
  bool stands_still() const { return state == InstanceState::running && !how.empty(); }
  bool operator==(const InstanceReport&) const = default;
};

struct ImageReport {
  ImageId id;
  WorkloadId workload;
  std::string spec_hash;  ///< of spec and root file system when it was taken; an image of another hash is useless
  std::uint64_t bytes = 0;
  milliseconds age{0};
  std::optional<ImageId> member_of;  ///< a share of that image's memory, saved by this host
  std::optional<ImageId> base;       ///< it is a delta of that
  bool merged = false;               ///< its pages need no base any more; `base` stays until all shares are known to be merged
  std::vector<ImageId> members;      ///< the shares of its memory that other hosts saved, named <image>.<host>
  bool operator==(const ImageReport&) const = default;
};

/// The highest epoch under which a workload was raised somewhere, or was to be.
struct FenceReport {
  WorkloadId workload;
  Epoch epoch;
  bool operator==(const FenceReport&) const = default;
};

/// What an agent says of its host, whole, at every heart-beat: a lost one costs nothing.
struct HostReport {
  HostId host;
  std::string boot;  ///< changes when the agent's host was started anew
  Endpoint agent;    ///< where the agent's API listens; its TCP port is also what liveness probes knock on
  Endpoint memory;   ///< where its memory server listens; port 0: it has none
  std::uint64_t sequence = 0;
  std::vector<InstanceReport> instances;
  std::vector<ImageReport> images;
  std::vector<FenceReport> fences;  ///< a raise here needs a higher epoch; gates grant some while control is down
  std::uint64_t memory_free_bytes = 0;
  double load = 0;  ///< runnable tasks per core
  bool checkpoint_works = true;  ///< CRIU passed its restore self-test here
  const InstanceReport* find(const InstanceId& id) const {
    for (const InstanceReport& one : instances)
      if (one.id == id) return &one;
    return nullptr;
  }
  bool operator==(const HostReport&) const = default;
};

/// How long the phases of one raise took, measured on the host that did it.
struct RaiseTimes {
  nanoseconds raise{0};  ///< call received -> processes exist (thawed, restored or started)
  nanoseconds ready{0};  ///< -> readiness request answered as it should
  bool operator==(const RaiseTimes&) const = default;
};

enum class RouteState {
  asleep,   ///< no instance; the next request raises one
  raising,  ///< an owner is being raised: hold
  up,
  stopped,  ///< a person stopped it: 503
};


struct Route {
  WorkloadId workload;
  Service service;
  Consistency consistency = Consistency::shared;
  std::uint32_t relocations = 10;
  milliseconds relocations_per{60'000};
  std::optional<milliseconds> lifetime;
  RouteState state = RouteState::asleep;
  Epoch epoch;
  HostId host;        ///< of the owner, when `up`
  Endpoint endpoint;  ///< of the owner, when `up`
  std::vector<HostId> fallback;  ///< hosts that can raise it without control, best first; empty when `exclusive`
  bool operator==(const Route&) const = default;
};

struct HostAddress {
  HostId host;
  Endpoint agent;
  auto operator<=>(const HostAddress&) const = default;
};

/// The whole of what a gate needs. Control pushes it at every change; a gate keeps the last one it saw.
struct RouteTable {
  std::uint64_t version = 0;
  std::vector<Route> routes;
  std::vector<HostAddress> hosts;
  bool operator==(const RouteTable&) const = default;
};

/// Why somebody believes that an owner does not serve.
enum class Evidence {
  asleep,        ///< it is not running, and a request came
  refused,       ///< its host answered RST: nobody listens there
  exited,        ///< its supervisor reported the exit (proof)
  silent,        ///< its host does not answer (no proof)
  unresponsive,  ///< its host answers, the application does not (no proof)
  requested,     ///< a person or the planner asked for the move
};

}  // namespace yado
