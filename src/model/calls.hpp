#pragma once
// What an agent can be asked to do. Every call names the workload and the epoch its sender believes in. A raise is
// refused (Errc::stale_epoch) when the agent has seen a higher one for that workload; stop, sleep and inspect when the
// instance they name has a higher one. Every call is idempotent by its ids.

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/cluster.hpp"

namespace yado {

/// Make `instance` the owner under `epoch`: thaw `standby` if it stands here, else restore `image`, else start cold.
/// A way that fails falls through to the next. Answered when the readiness request was answered as it should.
struct RaiseCall {
  std::optional<WorkloadSpec> spec;  ///< a gate without control leaves it out: the agent uses the one it prepared
  WorkloadId workload;
  InstanceId instance;
  Epoch epoch;
  std::optional<ImageId> image;
  bool only_image = false;  ///< no other way: what was handed over runs on, or nothing does
  bool operator==(const RaiseCall&) const = default;
};

/// Keep a frozen standby ready: restore `image` (or start cold without one), settle, freeze.
struct PrepareCall {
  WorkloadSpec spec;
  InstanceId instance;
  Epoch epoch;
  std::optional<ImageId> image;
  bool operator==(const PrepareCall&) const = default;
};

/// Of a VM with split memory: checkpoint the owner, `instance`, while it runs. Of anything else take the ready image: start a builder, wait until start-up completed, checkpoint it before it served anything,
/// restore a copy, and let the copy prove itself by the readiness request. An image that does not is thrown away.
struct BuildCall {
  WorkloadSpec spec;
  InstanceId instance;  ///< of the builder
  Epoch epoch;
  ImageId image;
  std::optional<ImageId> base;      ///< save what changed since, if the owner counts its changes from there; else all
  std::vector<HostAddress> peers;   ///< agents of the hosts that save a share
  std::uint64_t bytes_per_second = 0;  ///< that each host writes at most; 0: as its spec says, which counts anyway if it is less
  bool operator==(const BuildCall&) const = default;
};

/// Copy an image from another host's store. Carries the spec: its holder may be asked to raise it without control.
struct PullCall {
  WorkloadSpec spec;
  Epoch epoch;
  ImageId image;
  Endpoint from;
  /// What is pulled before it, in this order: shares of its memory that other hosts saved; of a delta its bases with theirs.
  struct Member {
    ImageId image;
    Endpoint from;
    bool operator==(const Member&) const = default;
  };
  std::vector<Member> members;
  bool in_background = false;  ///< nobody waits for it: it keeps to what the host gives to such work
  /// Else all of its memory has to be there in the end. The image itself is there already, as a rule; of the shares that it does not get, a restore asks who saved them.
  bool shares_only = false;
  bool operator==(const PullCall&) const = default;
};

/// A VM with split memory, `instance`, moves to host `to` while it runs: what is here goes to the memory servers, and then it stands frozen, to be
/// thawed by a later raise here if nobody goes on with it. `image`: the name of the rest (devices, disks), for that host to pull. Without an image in the answer it
/// runs on, because of `most_disk_bytes`; `detail` says so.
struct HandoverCall {
  WorkloadSpec spec;
  InstanceId instance;
  Epoch epoch;
  ImageId image;
  HostId to;
  bool disks_only = false;         ///< the image is of what was written to its disks so far; it runs on
  std::vector<ImageId> ahead;      ///< of its disks that host has these already, by earlier calls with disks_only, the oldest first
  std::uint64_t most_disk_bytes = 0;  ///< not yet, if it has written more than that to its disks since; 0: any
  bool operator==(const HandoverCall&) const = default;
};

/// A VM with split memory is about to be handed over to this host: what does not depend on where it stands is made ready for the raise of
/// `instance`, which finds it, or does without. `epoch`: of the owner it has now. Gone when control does not name the instance any more in its answer to a
/// report, and when the agent ends.
struct ExpectCall {
  WorkloadSpec spec;
  InstanceId instance;
  Epoch epoch;
  std::vector<ImageId> ahead;  ///< what came of its disks already, as in HandoverCall
  bool operator==(const ExpectCall&) const = default;
};

/// A copy of an image that is a delta, or a share of one, lies here: its pages are written anew, so that it needs its bases no more, in the
/// background, until it is wanted for anything else. It stays the same image (docs/formats/image.md, "Merging").
struct MergeCall {
  WorkloadId workload;
  Epoch epoch;
  ImageId image;  ///< the main one, also where only a share of it lies
  std::vector<PullCall::Member> others;  ///< what of the chain is not here, and who has it
  bool operator==(const MergeCall&) const = default;
};

struct StopCall {
  WorkloadId workload;
  InstanceId instance;
  Epoch epoch;
  bool operator==(const StopCall&) const = default;
};

/// Scale to zero: freeze the idle owner where it is. A later Raise on this host thaws it.
struct SleepCall {
  WorkloadId workload;
  InstanceId instance;
  Epoch epoch;
  bool operator==(const SleepCall&) const = default;
};

/// The memory of a running VM lies here and on the hosts of its split from now on. Answered when who is not named keeps nothing any
/// more; with an error, who keeps something is still in use.
struct ResplitCall {
  WorkloadSpec spec;
  InstanceId instance;
  Epoch epoch;
  bool operator==(const ResplitCall&) const = default;
};

struct DropImageCall {
  WorkloadId workload;
  Epoch epoch;
  ImageId image;
  bool operator==(const DropImageCall&) const = default;
};

/// Look at an instance from outside: does it exist, may it run? (The freezer's state, stopped tasks.)
struct InspectCall {
  WorkloadId workload;
  InstanceId instance;
  Epoch epoch;
  bool operator==(const InspectCall&) const = default;
};

using AgentCall =
    std::variant<RaiseCall, PrepareCall, BuildCall, PullCall, HandoverCall, StopCall, SleepCall, DropImageCall, InspectCall, ResplitCall, ExpectCall, MergeCall>;

/// The answer to any of them; what a call does not fill stays empty.
struct CallReply {
  InstanceId instance;   ///< raise: the owner that answers now (the thawed standby keeps its own name)
  Endpoint endpoint;     ///< raise
  Way way = Way::cold;   ///< raise, prepare
  RaiseTimes times;      ///< raise, prepare
  std::optional<ImageReport> image;  ///< build, pull, merge
  InstanceState state = InstanceState::exited;  ///< inspect
  std::uint64_t sequence = 0;  ///< reports with a higher sequence number know of this call's effect
  std::string detail;  ///< for people: why a faster way was not taken
  bool operator==(const CallReply&) const = default;
};

inline const WorkloadId& workload_of(const AgentCall& call) {
  return std::visit(
      [](const auto& c) -> const WorkloadId& {
        if constexpr (requires { c.workload; })
          return c.workload;
        else
          return c.spec.name;
      },
      call);
}
inline Epoch epoch_of(const AgentCall& call) {
  return std::visit([](const auto& c) { return c.epoch; }, call);
}
std::string_view name_of(const AgentCall& call);  ///< "raise", "prepare", …

/// Something worth a line in `yado events`: data, not prose.
struct Event {
  std::string kind;  ///< "suspect", "grant", "ready", …: docs/api.md lists them
  WorkloadId workload;
  HostId host;
  InstanceId instance;
  Epoch epoch;
  std::map<std::string, std::string> fields;
  bool operator==(const Event&) const = default;
};

}  // namespace yado
