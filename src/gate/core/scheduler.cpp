#include "gate/core/scheduler.hpp"

#include <algorithm>

namespace yado::gate {

// ---- requests ------------------------------------------------------------------------------------------------------

void Scheduler::request(RequestId id, std::string_view host_name, Method method, bool has_idempotency_key,
                        bool replayable_body, Instant now) {
  auto name = names_.find(host_name);
  if (name == names_.end()) {
    actions_.push_back(Refuse{id, 404, Outcome::none, fmt::format("no service has the host name \"{}\"", host_name)});
    return;
  }
  Workload& workload = workloads_.at(name->second);
  InHand& request = requests_[id];
  request = InHand{
      .workload = name->second, .method = method, .has_key = has_idempotency_key, .replayable_body = replayable_body};
  ++workload.in_hand;
  workload.last_used = now;
  if (std::exchange(workload.idle_reported, false))
    actions_.push_back(ReportIdle{name->second, workload.route.epoch, false});
  place(id, request, now);
}

void Scheduler::place(RequestId id, InHand& request, Instant now) {
  Workload& workload = workloads_.at(request.workload);
  switch (workload.route.state) {
    case RouteState::stopped:
      return refuse(id, 503, Outcome::none, fmt::format("{} is stopped", request.workload));
    case RouteState::asleep:
    case RouteState::raising:
      hold(request, workload, now);
      return relocate(request.workload, workload, Evidence::asleep, {}, now);
    case RouteState::up:
      break;
  }
  const auto host = hosts_.find(workload.route.host);
  const bool silent = host != hosts_.end() && host->second.suspect;
  if (workload.relocation) {
    // Of a suspicion that its host has disproved, control may still make a move: what can be repeated need not wait.
    const bool disproved = !silent && workload.relocation->evidence == Evidence::silent &&
                           workload.relocation->suspect == workload.route.host;
    if (!disproved || workload.route.consistency == Consistency::exclusive || !may_replay(request, workload, false))
      return hold(request, workload, now);
  } else if (silent) {
    hold(request, workload, now);
    return relocate(request.workload, workload, Evidence::silent, workload.route.host, now);
  }
  forward(id, request, workload, now);
}

void Scheduler::forward(RequestId id, InHand& request, Workload& workload, Instant now) {
  const Route& route = workload.route;
  Host& host = hosts_.try_emplace(route.host, Host{.rtt = detect::RttEstimator(probe_bounds)}).first->second;
  request.stage = Stage::connecting;
  request.host = route.host;
  request.epoch = route.epoch;
  request.forwarded = now;
  if (host.in_hand++ == 0) host.waiting_since = now;
  // A table may name an owner on a host that it does not list: the owner's own port tells as well whether it lives.
  if (host.probe_at.port == 0) host.probe_at = route.endpoint;
  if (workload.unanswered++ == 0) workload.last_progress = now;
  // A kept connection may be to a host that died since: what is written to it is neither refused nor answered. Requests
  // that may not be repeated therefore always travel on a connection of their own, whose SYN-ACK is the host check.
  const bool repeatable = may_replay(request, workload, false);
  actions_.push_back(Forward{id, ++request.attempt, route.host, route.endpoint, !repeatable || request.wasted > 0,
                             request.workload, route.epoch});
}

void Scheduler::hold(InHand& request, Workload& workload, Instant now) {
  request.stage = Stage::held;
  if (!workload.holding_since) workload.holding_since = now;
}

/// The attempt under way counts no longer, whatever becomes of the request.
void Scheduler::leave_attempt(InHand& request) {
  if (request.stage == Stage::held) return;
  if (auto host = hosts_.find(request.host); host != hosts_.end() && host->second.in_hand > 0) --host->second.in_hand;
  if (request.stage != Stage::answering) --workloads_.at(request.workload).unanswered;
  request.stage = Stage::held;
}

void Scheduler::connected(RequestId id, int attempt, nanoseconds took, Instant now) {
  InHand* request = find(id, attempt);
  if (!request) return;
  if (auto host = hosts_.find(request->host); host != hosts_.end()) host->second.rtt.measured(took);
  host_heard(HostId(request->host), now);
}

void Scheduler::sent(RequestId id, int attempt) {
  InHand* request = find(id, attempt);
  if (!request || request->stage != Stage::connecting) return;
  request->stage = Stage::sent;
  request->touched = request->touched || request->method != Method::safe;
}

void Scheduler::answering(RequestId id, int attempt, Instant now) {
  InHand* request = find(id, attempt);
  if (!request || request->stage == Stage::answering) return;
  request->stage = Stage::answering;
  Workload& workload = workloads_.at(request->workload);
  --workload.unanswered;
  workload.last_progress = now;
  workload.response.measured(now - request->forwarded);
  workload.patience = nanoseconds(0);
  if (workload.switch_pending && request->epoch == workload.route.epoch) {
    workload.switch_pending = false;
    report("switch", request->workload, request->host, request->epoch);
  }
  host_heard(HostId(request->host), now);
}

void Scheduler::heard(RequestId id, int attempt, Instant now) {
  if (InHand* request = find(id, attempt)) host_heard(HostId(request->host), now);
}

void Scheduler::finished(RequestId id, Instant now) {
  auto found = requests_.find(id);
  if (found == requests_.end()) return;
  workloads_.at(found->second.workload).last_used = now;
  erase(id);
}

void Scheduler::client_gone(RequestId id, Instant now) { finished(id, now); }

void Scheduler::failed(RequestId id, int attempt, Failure failure, Instant now) {
  InHand* request = find(id, attempt);
  if (!request) return;
  const Stage stage = request->stage;
  const Epoch epoch = request->epoch;
  const HostId host = request->host;
  Workload& workload = workloads_.at(request->workload);
  if (failure != Failure::lost) host_heard(host, now);  // a RST or a FIN comes from a living kernel
  leave_attempt(*request);

  if (stage == Stage::answering)
    return refuse(id, 502, Outcome::unknown, "the connection to the application ended in the middle of its answer");
  if (stage == Stage::sent && !may_replay(*request, workload, false))
    return refuse(id, 502, Outcome::unknown, "the connection to the application ended before its answer");

  ++request->wasted;
  const bool same_owner = workload.route.state == RouteState::up && workload.route.epoch == epoch;
  if (failure == Failure::refused && same_owner && !workload.relocation) {
    hold(*request, workload, now);
    return relocate(WorkloadId(request->workload), workload, Evidence::refused, host, now);
  }
  if (request->wasted > attempts_without_relocation)
    return refuse(id, 502, Outcome::none, fmt::format("{} closed the connection {} times", host, request->wasted));
  place(id, *request, now);
}

bool Scheduler::may_replay(const InHand& request, const Workload& workload, bool fenced) const {
  if (!request.replayable_body) return false;
  if (request.method == Method::safe) return true;
  if (request.has_key && !workload.route.service.idempotency_header.empty()) return true;
  return request.method == Method::idempotent && fenced;
}

void Scheduler::refuse(RequestId id, int status, Outcome outcome, std::string why) {
  if (auto found = requests_.find(id); outcome == Outcome::none && found != requests_.end() && found->second.touched) {
    status = 502;
    outcome = Outcome::unknown;  // an earlier attempt of it went out
  }
  actions_.push_back(Refuse{id, status, outcome, std::move(why)});
  erase(id);
}

void Scheduler::refuse_held(const WorkloadId& id, int status, const std::string& why) {
  for (RequestId request : requests_of(id))
    if (requests_.at(request).stage == Stage::held) refuse(request, status, Outcome::none, why);
}

void Scheduler::erase(RequestId id) {
  auto found = requests_.find(id);
  if (found == requests_.end()) return;
  leave_attempt(found->second);
  --workloads_.at(found->second.workload).in_hand;
  requests_.erase(found);
}

// ---- bookkeeping ---------------------------------------------------------------------------------------------------

Scheduler::Workload* Scheduler::find(const WorkloadId& id) {
  auto found = workloads_.find(id);
  return found == workloads_.end() ? nullptr : &found->second;
}

Scheduler::InHand* Scheduler::find(RequestId id, int attempt) {
  auto found = requests_.find(id);
  if (found == requests_.end() || found->second.attempt != attempt || found->second.stage == Stage::held)
    return nullptr;
  return &found->second;
}

std::vector<RequestId> Scheduler::requests_of(const WorkloadId& id) const {
  std::vector<RequestId> found;
  for (const auto& [request_id, request] : requests_)
    if (request.workload == id) found.push_back(request_id);
  return found;
}

void Scheduler::report(std::string kind, const WorkloadId& workload, const HostId& host, Epoch epoch,
                       std::map<std::string, std::string> fields) {
  actions_.push_back(Report{Event{std::move(kind), workload, host, {}, epoch, std::move(fields)}});
}

}  // namespace yado::gate
