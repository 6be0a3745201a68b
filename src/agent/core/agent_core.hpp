#pragma once
// An agent's decisions: which calls are refused, which way of starting is taken, what is told to whom. Pure.
//
// The fence: per workload the highest epoch that was ever raised here, durable before anything is done under it. A raise
// with an older one is refused, whoever sends it.
//
// A raise tries the ways that are possible here (thaw what stands frozen, restore the image, start cold), fastest first
// by what they took before, until one answers its readiness request. Of an `exclusive` workload nothing is started while
// anything that ran under an earlier epoch, or in an earlier attempt, is not certainly gone.
//
// A call that is repeated while it is under way is answered together with the first.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/calls.hpp"

namespace yado::agent {

using CallId = std::uint64_t;

/// Durable before the next action.
struct PersistFence {
  WorkloadId workload;
  Epoch epoch;
};
/// The spec is kept so that the workload can be raised when control is down.
struct PersistSpec {
  WorkloadSpec spec;
};
/// Make a new instance. An owner is started or restored and asked its readiness request; a standby is started or
/// restored, settled and frozen without having been asked anything. Answered by launched(), exactly once.
struct Launch {
  InstanceId instance;
  WorkloadSpec spec;
  Purpose purpose;
  Epoch epoch;
  Way way;
  std::optional<ImageId> image;
};
/// A frozen instance becomes the owner under `epoch`: thaw it and ask its readiness request. Answered by launched().
struct Promote {
  InstanceId instance;
  WorkloadSpec spec;
  Epoch epoch;
};
/// Answered by frozen().
struct Freeze {
  InstanceId instance;
};
/// Answered by gone(), once nothing of it is left.
struct Kill {
  InstanceId instance;
};
/// Long work that decides nothing; answered by side_done() with what to reply.
struct Side {
  CallId call;
  AgentCall what;  ///< BuildCall, PullCall, HandoverCall, DropImageCall, InspectCall, ExpectCall, ResplitCall or MergeCall
};
struct Reply {
  CallId call;
  Result<CallReply> result;
};

using Action = std::variant<PersistFence, PersistSpec, Launch, Promote, Freeze, Kill, Side, Reply>;

struct Launched {
  Endpoint endpoint;
  RaiseTimes times;
};

class AgentCore {
 public:
  // Start-up, in this order, before any call is taken.
  void recover_fence(const WorkloadId& workload, Epoch epoch);
  void recover_spec(WorkloadSpec spec);
  /// Reports are numbered from here on: above every number of an earlier agent process on this boot of the host, or
  /// control takes the new reports for old ones.
  void recover_sequence(std::uint64_t sequence) { sequence_ = sequence; }
  /// A supervisor that was found running. Reports age from `since`.
  void adopt(const InstanceReport& instance, Instant now);

  // Calls.
  void call(CallId id, const AgentCall& what, Instant now);

  // Outcomes of actions.
  void launched(const InstanceId& instance, const Result<Launched>& result, Instant now);
  void frozen(const InstanceId& instance, const Status& result, Instant now);
  void gone(const InstanceId& instance, Instant now);
  void side_done(CallId id, Result<CallReply> result, Instant now);

  /// An instance ended without having been asked to. True when control should hear of it at once.
  bool exited(const InstanceId& instance, const std::string& how, Instant now);
  /// A supervisor froze its instance because its lease ended, or let it run again.
  void lease_state(const InstanceId& instance, bool runs, Instant now);
  /// It stands still although it runs, or, `why` empty, goes on.
  void stands(const InstanceId& instance, const std::string& why);

  /// Numbered: a reply to a call carries the number of the last report that could not know of its effect.
  std::vector<InstanceReport> report(std::uint64_t& sequence, Instant now);
  std::vector<Action> take() { return std::exchange(actions_, {}); }

  /// The images this agent has (names only), so that a raise knows what it may restore. `newest`: which one a raise by
  /// a gate takes, which knows of no images. Told by the shell.
  void images(std::set<ImageId> present, std::map<WorkloadId, ImageId> newest = {}) {
    images_ = std::move(present);
    newest_ = std::move(newest);
  }
  Epoch fence(const WorkloadId& workload) const;
  std::vector<FenceReport> fences() const;
  const WorkloadSpec* spec(const WorkloadId& workload) const;

 private:
  struct Instance {
    InstanceReport report;
    Instant since;
    bool ending = false;
  };
  struct Raise {
    RaiseCall call;
    std::vector<CallId> callers;
    bool begun = false;
    std::set<InstanceId> awaits;  ///< must be gone (or have fallen asleep) before the next attempt
    std::vector<Way> ways;        ///< still to try, fastest last
    Way current = Way::cold;
    InstanceId instance;  ///< of the attempt under way; empty while it awaits
    int attempts = 0;
    std::string detail;
    Instant started;
  };
  struct Known {
    Epoch fence;
    std::optional<WorkloadSpec> spec;
    std::map<Way, nanoseconds> took;  ///< by each way, learnt
    std::optional<Raise> raise;
  };

  void raise(CallId id, const RaiseCall& call, Instant now);
  void continue_raise(const WorkloadId& id, Known& known, Instant now);
  void next_way(const WorkloadId& id, Known& known, Instant now);
  void no_longer_awaited(const WorkloadId& workload, const InstanceId& instance, Instant now);
  void prepare(CallId id, const PrepareCall& call, Instant now);
  void sleep(CallId id, const SleepCall& call, Instant now);
  void stop(CallId id, const StopCall& call);
  void abandon_raise(Known& known, const Error& why);
  void kill(const InstanceId& instance);
  bool admit(CallId id, const AgentCall& what);
  void raise_fence(const WorkloadId& workload, Epoch epoch);
  void remember(Known& known, const WorkloadSpec& spec);
  void reply(CallId id, Result<CallReply> result) { actions_.push_back(Reply{id, std::move(result)}); }
  void reply_all(const std::vector<CallId>& ids, const Result<CallReply>& result);
  InstanceId frozen_instance(const WorkloadId& workload) const;
  InstanceId unused_name(const InstanceId& wanted, int attempt) const;

  std::map<WorkloadId, Known> workloads_;
  std::map<InstanceId, Instance> instances_;
  struct SideCall {
    AgentCall what;
    std::vector<CallId> callers;
  };
  std::map<InstanceId, std::vector<CallId>> waiting_gone_, preparing_, sleeping_;
  std::map<CallId, SideCall> sides_;
  std::set<ImageId> images_;
  std::map<WorkloadId, ImageId> newest_;
  std::uint64_t sequence_ = 0;
  std::vector<Action> actions_;
};

}  // namespace yado::agent
