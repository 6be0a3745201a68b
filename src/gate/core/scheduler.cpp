#include "gate/core/scheduler.hpp"

#include <algorithm>

#include "detect/brake.hpp"
#include "model/names.hpp"

namespace yado::gate {
namespace {

// A lost packet is not a death: three probes, the second and third with twice the time of the one before.
constexpr int probes_per_check = 3;
// The bounds of what is learnt. 100 ms is what the paper always waits; below 10 ms a busy scheduler looks like a death.
constexpr detect::RttEstimator::Bounds probe_bounds{.unknown = 100ms, .least = 10ms, .most = 1s};
// Until an answer time was learnt an application gets a second; what is learnt may shorten that to a quarter.
constexpr detect::RttEstimator::Bounds response_bounds{.unknown = 1s, .least = 250ms, .most = 30s};
constexpr nanoseconds longest_quiet = 1s;
// An attempt may fail for reasons of its own (a server that closes, a full backlog); not for ever.
constexpr int attempts_without_relocation = 4;

}  // namespace

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

// ---- relocation ----------------------------------------------------------------------------------------------------

void Scheduler::relocate(const WorkloadId& id, Workload& workload, Evidence evidence, const HostId& suspect,
                         Instant now) {
  if (workload.relocation) return;                       // many requests, one relocation
  if (evidence == Evidence::silent && braked()) return;  // held; check_workloads comes back to it
  if (evidence != Evidence::asleep &&
      !workload.limit.admit(workload.route.relocations, workload.route.relocations_per, now)) {
    workload.last_progress = now;  // look again after as much patience as before, not at once
    workload.holding_since.reset();
    report("rate-limited", id, suspect, workload.route.epoch);
    return refuse_held(id, 503,
                       fmt::format("{} was relocated {} times in {} s: relocation rate limit", id,
                                   workload.route.relocations, to_ms(workload.route.relocations_per) / 1000));
  }
  workload.relocation = Relocation{.evidence = evidence, .suspect = suspect};
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
  relocation_failed(id, Error{Errc::unavailable, fmt::format("control does not answer and no fallback host is left")},
                    now);
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
  if (error.code == Errc::unavailable && !control_up_ &&
      workload->relocation->next_fallback < workload->route.fallback.size())
    return pursue(id, *workload, now);
  // Control says that there is nothing to move; if it knows of no owner either, that is a failure like others.
  const bool nothing_to_move = error.code == Errc::conflict && workload->route.state == RouteState::up;
  if (workload->relocation->unanswered > 0 && !nothing_to_move) return;  // somebody else may still succeed
  const Evidence evidence = workload->relocation->evidence;
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

// ---- hosts ---------------------------------------------------------------------------------------------------------

void Scheduler::host_heard(const HostId& id, Instant now) {
  auto found = hosts_.find(id);
  if (found == hosts_.end()) return;
  Host& host = found->second;
  host.last_heard = now;
  host.tries = 0;
  host.quiet = nanoseconds(0);
  if (!host.suspect) return;
  host.suspect = false;
  report("host-answers", {}, id, {});
  // A wrong suspicion: who was held for it goes on where it stands. Control's answer, if any, is adopted as it comes.
  for (auto& [name, workload] : workloads_) {
    if (workload.route.host != id || workload.route.state != RouteState::up || !workload.holding_since) continue;
    if (workload.relocation && workload.route.consistency == Consistency::exclusive) continue;
    release(name, workload, false, now);
  }
}

void Scheduler::probe(const HostId& id, Host& host, Instant now) {
  host.token = ++last_token_;
  host.probe_sent = now;
  host.next_probe = now + host.rtt.timeout() * (1 << std::min(host.tries, probes_per_check - 1));
  ++host.tries;
  actions_.push_back(Probe{id, host.probe_at, host.token});
}

void Scheduler::probe_answered(const HostId& id, std::uint64_t token, Instant now) {
  auto found = hosts_.find(id);
  if (found == hosts_.end()) return;
  Host& host = found->second;
  if (token == host.token && host.tries > 0) host.rtt.measured(now - host.probe_sent);
  const nanoseconds quiet = host.quiet;
  const bool was_suspect = host.suspect;
  host_heard(id, now);
  if (was_suspect) check_workloads(now);  // the brake may be off by this
  // It lives and is only slow: ask less often.
  host.quiet = std::min(2 * std::max(quiet, 2 * host.rtt.timeout()), longest_quiet);
}

void Scheduler::suspect(const HostId& id, Host& host, Instant now) {
  host.suspect = true;
  // Is it the host or is it me? The others are asked too, so that the brake can tell. Those that were suspected before
  // may be back: they are asked so slowly otherwise that the brake would hold for their sake.
  for (auto& [other_id, other] : hosts_) {
    if (other_id == id) continue;
    if (other.suspect) {
      probe(other_id, other, now);
      other.next_probe = now + longest_quiet;
    } else if (other.tries == 0 && now - other.last_heard > other.rtt.timeout()) {
      probe(other_id, other, now);
    }
  }
  for (auto& [name, workload] : workloads_)
    if (workload.route.host == id && workload.route.state == RouteState::up && workload.in_hand > 0)
      relocate(name, workload, Evidence::silent, id, now);
}

bool Scheduler::braked() const {
  const auto silent = std::ranges::count_if(hosts_, [](const auto& entry) { return entry.second.suspect; });
  return detect::brake(static_cast<std::size_t>(silent), hosts_.size());
}

// ---- control -------------------------------------------------------------------------------------------------------

void Scheduler::routes(RouteTable table, Instant now) {
  for (const HostAddress& address : table.hosts) {
    Host& host = hosts_.try_emplace(address.host, Host{.rtt = detect::RttEstimator(probe_bounds)}).first->second;
    host.probe_at = address.agent;
  }
  std::erase_if(hosts_, [&](const auto& entry) {
    return entry.second.in_hand == 0 &&
           std::ranges::find(table.hosts, entry.first, &HostAddress::host) == table.hosts.end();
  });
  names_.clear();
  std::vector<WorkloadId> gone;
  for (const auto& [id, workload] : workloads_)
    if (std::ranges::find(table.routes, id, &Route::workload) == table.routes.end()) gone.push_back(id);
  for (const WorkloadId& id : gone) {
    for (RequestId request : requests_of(id)) {
      const InHand& in_hand = requests_.at(request);
      const bool untouched = in_hand.stage == Stage::held || in_hand.stage == Stage::connecting;
      if (in_hand.stage != Stage::held) actions_.push_back(Abandon{request, in_hand.attempt});
      refuse(request, untouched ? 404 : 502, untouched ? Outcome::none : Outcome::unknown,
             fmt::format("{} was removed", id));
    }
    workloads_.erase(id);
  }
  for (Route& route : table.routes) {
    const WorkloadId id = route.workload;
    for (const std::string& name : route.service.hosts) names_[name] = id;
    auto [entry, made] = workloads_.try_emplace(id, Workload{.response = detect::RttEstimator(response_bounds)});
    Workload& workload = entry->second;
    const Epoch before = workload.route.epoch;
    const bool was_up = workload.route.state == RouteState::up;
    if (made) workload.last_used = now;
    trust_new_owner(workload, route, now);
    adopt(id, workload, route, now);
    if (workload.route.state == RouteState::stopped) {
      workload.relocation.reset();
      workload.holding_since.reset();
      refuse_held(id, 503, fmt::format("{} is stopped", id));
    } else if (workload.route.state == RouteState::up) {
      // A new owner ends any relocation under way; the old one ends it only when nobody suspects it.
      if (workload.route.epoch > before || !was_up) workload.relocation.reset();
      if (!workload.relocation) release(id, workload, false, now);
    }
  }
  table_ = std::move(table);
}

void Scheduler::control_reachable(bool reachable, Instant now) {
  if (control_up_ == reachable) return;
  control_up_ = reachable;
  report(reachable ? "control-answers" : "control-silent", {}, {}, {});
  for (auto& [id, workload] : workloads_) {
    if (!workload.relocation) continue;
    // What was asked before is lost: ask again when it is back.
    if (!reachable && std::exchange(workload.relocation->asked_control, false))
      workload.relocation->unanswered = std::max(0, workload.relocation->unanswered - 1);
    pursue(WorkloadId(id), workload, now);
  }
}

// ---- time ----------------------------------------------------------------------------------------------------------

void Scheduler::tick(Instant now) {
  check_hosts(now);
  check_workloads(now);
}

void Scheduler::check_hosts(Instant now) {
  for (auto& [id, host] : hosts_) {
    if (host.tries > 0) {
      if (now < host.next_probe) continue;
      if (host.tries >= probes_per_check) {
        if (!host.suspect) suspect(id, host, now);
        host.tries = probes_per_check;  // go on asking, ever more slowly, until it answers
        probe(id, host, now);
        host.next_probe = now + longest_quiet;
        continue;
      }
      probe(id, host, now);
    } else if (host.in_hand > 0 && !host.suspect) {
      const nanoseconds quiet = std::max(host.quiet, 2 * host.rtt.timeout());
      if (now >= std::max(host.last_heard, host.waiting_since) + quiet) probe(id, host, now);
    }
  }
}

void Scheduler::check_workloads(Instant now) {
  for (auto& [id, workload] : workloads_) {
    const Route& route = workload.route;
    const auto host = hosts_.find(route.host);
    const bool host_suspect = host != hosts_.end() && host->second.suspect;
    if (workload.holding_since && now >= *workload.holding_since + 2 * route.service.ready.start_limit) {
      workload.holding_since.reset();
      workload.relocation.reset();
      refuse_held(id, 503, fmt::format("{} could not be raised in time", id));
    }
    if (route.state == RouteState::up && !workload.relocation) {
      const nanoseconds patience = std::max(workload.patience, workload.response.timeout());
      if (host_suspect && workload.in_hand > 0)
        relocate(id, workload, Evidence::silent, route.host, now);  // the brake may be off by now
      else if (workload.unanswered > 0 && now >= workload.last_progress + patience)
        relocate(id, workload, Evidence::unresponsive, route.host, now);
    }
    if (route.lifetime && route.state == RouteState::up && workload.in_hand == 0 && !workload.idle_reported &&
        now >= workload.last_used + *route.lifetime) {
      workload.idle_reported = true;
      actions_.push_back(ReportIdle{id, route.epoch, true});
    }
  }
}

Instant Scheduler::next_deadline() const {
  Instant next = Instant::max();
  for (const auto& [id, host] : hosts_) {
    if (host.tries > 0)
      next = std::min(next, host.next_probe);
    else if (host.in_hand > 0 && !host.suspect)
      next =
          std::min(next, std::max(host.last_heard, host.waiting_since) + std::max(host.quiet, 2 * host.rtt.timeout()));
  }
  for (const auto& [id, workload] : workloads_) {
    const Route& route = workload.route;
    if (workload.holding_since) next = std::min(next, *workload.holding_since + 2 * route.service.ready.start_limit);
    if (route.state != RouteState::up || workload.relocation) continue;
    // While its host is suspected (and the brake on), the host's probes say when to look again.
    const auto host = hosts_.find(route.host);
    if (workload.unanswered > 0 && (host == hosts_.end() || !host->second.suspect))
      next = std::min(next, workload.last_progress + std::max(workload.patience, workload.response.timeout()));
    if (route.lifetime && workload.in_hand == 0 && !workload.idle_reported)
      next = std::min(next, workload.last_used + *route.lifetime);
  }
  return next;
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
