// From a suspicion to the new owner: what is held for it, what is repeated, what is refused.
#include "gate/core/scheduler.hpp"

#include <algorithm>

#include "model/names.hpp"

namespace yado::gate {

void Scheduler::relocate(const WorkloadId& id, Workload& workload, Evidence evidence, const HostId& suspect,
                         Instant now) {
  if (evidence == Evidence::silent && braked()) return;  // held; check_workloads comes back to it
  if (auto& under_way = workload.relocation) {           // many requests, one relocation
    // Control has the host look at the application; now it is known that the host cannot.
    if (under_way->evidence != Evidence::unresponsive || evidence != Evidence::silent || under_way->suspect != suspect) return;
    under_way->evidence = evidence;
    if (!std::exchange(under_way->asked_control, false)) return;
    report("suspect", id, suspect, workload.route.epoch, {{"evidence", std::string(name_of(evidence))}});
    return pursue(id, workload, now);
  }
  if (!control_up_ && now < workload.in_vain.until) {
    workload.last_progress = now;
    workload.holding_since.reset();
    return refuse_held(id, 503, workload.in_vain.why);
  }
  if (evidence != Evidence::asleep &&
      !workload.limit.admit(workload.route.relocations, workload.route.relocations_per, now)) {
    workload.last_progress = now;  // look again after as much patience as before, not at once
    workload.holding_since.reset();
    report("rate-limited", id, suspect, workload.route.epoch);
    return refuse_held(id, 503,
                       fmt::format("{} was relocated {} times in {} s: relocation rate limit", id,
                                   workload.route.relocations, to_ms(workload.route.relocations_per) / 1000));
  }
  workload.relocation = Relocation{.evidence = evidence, .suspect = suspect, .begun = now};
  if (!workload.holding_since) workload.holding_since = now;
  report("suspect", id, suspect, workload.route.epoch, {{"evidence", std::string(name_of(evidence))}});
  pursue(id, workload, now);
}

/// Takes the next step of a relocation: control if it is there, else the next fallback host.
void Scheduler::pursue(const WorkloadId& id, Workload& workload, Instant now) {
  Relocation& relocation = *workload.relocation;
  const Route& route = workload.route;
  if (control_up_ && !relocation.asked_control) {
    relocation.asked_control = true;
    ++relocation.unanswered;
    ++relocation.of_control;
    actions_.push_back(Ask{id, route.epoch, relocation.evidence, relocation.suspect});
    return;
  }
  if (control_up_) return;                                  // its answer is under way
  if (route.consistency == Consistency::exclusive) return;  // held until control is back: only it may grant
  if (relocation.unanswered > 0) return;                    // a fallback host's answer is under way
  while (relocation.next_fallback < route.fallback.size()) {
    const HostId& host = route.fallback[relocation.next_fallback++];
    auto known = hosts_.find(host);
    if (host == relocation.suspect || known == hosts_.end() || known->second.suspect) continue;
    const Epoch epoch = std::max(route.epoch, workload.granted).next(granter_);
    workload.granted = epoch;
    const InstanceId instance(fmt::format("{}.g{}-{}", id, granter_, epoch.counter()));
    ++relocation.unanswered;
    actions_.push_back(RaiseWithoutControl{id, host, epoch, instance});
    return;
  }
  const std::string& last = relocation.last_error;
  relocation_failed(id, Error{Errc::unavailable, fmt::format("control does not answer and no fallback host is left{}{}", last.empty() ? "" : "; the last one: ", last)}, now);
}

void Scheduler::adopt(const WorkloadId& id, Workload& workload, Route route, Instant now) {
#ifndef YADO_CANARY_epoch
  if (route.epoch < workload.route.epoch) return;
#endif
  if (route.epoch > workload.route.epoch || route.endpoint != workload.route.endpoint) {
    workload.switch_pending = route.state == RouteState::up;
    workload.patience = nanoseconds(0);
    workload.last_progress = now;
  }
  if (workload.route.state != route.state) workload.idle_reported = false;
  workload.route = std::move(route);
  (void)id;
}

/// Who was just raised answered on its host a moment ago: an older suspicion of that host is over. (It is judged anew by
/// the next request; without this, the new owner would be left at once for the silence of the old one.)
void Scheduler::trust_new_owner(const Workload& workload, const Route& route, Instant now) {
  if (route.state == RouteState::up && route.epoch > workload.route.epoch) host_heard(HostId(route.host), now);
}

void Scheduler::relocated(const WorkloadId& id, Route route, bool fenced, Instant now) {
  Workload* workload = find(id);
  if (!workload) return;
  trust_new_owner(*workload, route, now);
  adopt(id, *workload, std::move(route), now);
  if (workload->route.state != RouteState::up) return;  // an answer to an older question
  workload->relocation.reset();
  workload->in_vain = {};
  release(id, *workload, fenced, now);
}

void Scheduler::release(const WorkloadId& id, Workload& workload, bool fenced, Instant now) {
  workload.holding_since.reset();
  for (RequestId request_id : requests_of(id)) {
    auto found = requests_.find(request_id);
    if (found == requests_.end()) continue;  // refused together with the one before it
    InHand& request = found->second;
    if (request.stage == Stage::held) {
      place(request_id, request, now);
      continue;
    }
    if (request.epoch >= workload.route.epoch) continue;
    if (request.stage == Stage::answering) {
      // The old owner may finish what it began, unless its host is silent: then nobody will.
      if (auto host = hosts_.find(request.host); host != hosts_.end() && host->second.suspect) {
        actions_.push_back(Abandon{request_id, request.attempt});
        refuse(request_id, 502, Outcome::unknown,
               fmt::format("{} fell silent in the middle of its answer", request.host));
      }
      continue;
    }
    const bool replay = request.stage == Stage::connecting || may_replay(request, workload, fenced);
    actions_.push_back(Abandon{request_id, request.attempt});
    if (!replay) {
      refuse(request_id, 502, Outcome::unknown,
             fmt::format("{} fell silent after the request was sent to it", request.host));
      continue;
    }
    leave_attempt(request);
    request.wasted = 0;
    forward(request_id, request, workload, now);
  }
}

void Scheduler::relocation_failed(const WorkloadId& id, const Error& error, Instant now) {
  Workload* workload = find(id);
  if (!workload || !workload->relocation) return;
  if (workload->relocation->unanswered > 0) --workload->relocation->unanswered;
  workload->relocation->of_control = std::min(workload->relocation->of_control, workload->relocation->unanswered);
  if (error.code == Errc::unavailable && !control_up_ &&
      workload->relocation->next_fallback < workload->route.fallback.size()) {
    workload->relocation->last_error = error.message;
    return pursue(id, *workload, now);
  }
  // Control says that there is nothing to move; if it knows of no owner either, that is a failure like others.
  const bool nothing_to_move = error.code == Errc::conflict && workload->route.state == RouteState::up;
  if (workload->relocation->unanswered > 0 && !nothing_to_move) return;  // somebody else may still succeed
  const Evidence evidence = workload->relocation->evidence;
  const nanoseconds took = now - workload->relocation->begun;
  workload->relocation.reset();
  if (nothing_to_move) {
    // Control looked: the instance can serve, it is only slow. Wait longer before asking again.
    workload->patience = 2 * std::max(workload->patience, workload->response.timeout());
    workload->last_progress = now;
    workload->holding_since.reset();
    for (RequestId request_id : requests_of(id)) {
      InHand& request = requests_.at(request_id);
      if (request.stage != Stage::held) continue;
      if (request.wasted > attempts_without_relocation)
        refuse(request_id, 502, Outcome::none, error.message);
      else
        forward(request_id, request, *workload, now);
    }
    return;
  }
  if (!control_up_) {
    constexpr nanoseconds longest = 60s;
    auto& in_vain = workload->in_vain;
    in_vain.until = now + std::min(longest, took * (1 << std::min(in_vain.rounds++, 10)));
    in_vain.why = error.text();
  }
  report("relocation-failed", id, {}, workload->route.epoch,
         {{"evidence", std::string(name_of(evidence))}, {"error", error.text()}});
  workload->holding_since.reset();
  refuse_held(id, 503, error.text());
  // What was sent to a host that is silent will not be answered by anybody.
  for (RequestId request_id : requests_of(id)) {
    InHand& request = requests_.at(request_id);
    auto host = hosts_.find(request.host);
    if (host == hosts_.end() || !host->second.suspect) continue;
    actions_.push_back(Abandon{request_id, request.attempt});
    refuse(request_id, 502, request.stage == Stage::connecting ? Outcome::none : Outcome::unknown, error.text());
  }
}

}  // namespace yado::gate
