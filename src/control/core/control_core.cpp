// Start, people, gates, and what they see. The owner: owner.cpp. Hosts and time: hosts.cpp. Images and standbys:
// redundancy.cpp.
#include "control/core/control_core.hpp"

#include <algorithm>

#include "base/units.hpp"
#include "control/core/pacing.hpp"
#include "detect/brake.hpp"
#include "model/names.hpp"

namespace yado::control {

// ---- start ---------------------------------------------------------------------------------------------------------

void ControlCore::recover(std::vector<Record> records, Instant now) {
  all_known_at_ = now + settings_.reconnect;
  for (Record& record : records) {
    const WorkloadId id = record.spec.name;
    // A host that died while control was down never reports: it is watched from now on like any other.
    if (!record.host.empty()) {
      auto [host, made] = hosts_.try_emplace(record.host, Host{{}, detect::HeartbeatDetector(settings_.heartbeat, settings_.reconnect, now)});
      if (made) host->second.report.host = record.host;
    }
    Workload& workload = workloads_[id];
    workload.record = std::move(record);
    const Record& kept = workload.record;
    if (kept.spec.policy.consistency == Consistency::exclusive && kept.epoch != Epoch())
      leases_.recover(id, kept.epoch, kept.spec.policy.lease, kept.phase == OwnerPhase::up, now);
    // Who holds what is known when every agent has spoken: until then nothing is missing.
    workload.image.not_before = workload.standby.not_before = workload.memory.not_before = workload.merge.not_before = all_known_at_;
    // What was being raised may stand by now: its agent's first report says so. Otherwise it is tried again.
    if (kept.phase == OwnerPhase::raising) {
      workload.record.phase = OwnerPhase::absent;
      workload.restarted_in_raise = true;
      workload.raise_not_before = all_known_at_;
    }
  }
}

// ---- people --------------------------------------------------------------------------------------------------------

void ControlCore::deploy(AskId ask, WorkloadSpec spec, Instant now) {
  Workload& workload = workloads_[spec.name];
  Record& record = workload.record;
  const bool unchanged = record.revision > 0 && !record.removed && record.spec == spec;
  const bool was_off = record.removed || record.stopped || record.revision == 0;
  if (unchanged && !was_off && workload.owner) return workload.waiting.push_back(ask);
  if (unchanged && !was_off && record.phase == OwnerPhase::up) return answer(ask, route_of(workload), true);
  if (!unchanged) {
    // Only what an instance is made of needs a new one; a changed policy is simply obeyed from now on.
    const bool alike = record.revision > 0 && same_instance(record.spec, spec);
    const bool same = alike && !record.removed;
    // Hosts drop images of a spec that is over.
    if (const auto clone = clone_of(spec.name); clone && !alike)
      return answer(ask, fail(Errc::conflict, "{} is a clone of {} and has no image of its own yet: `yado checkpoint {}` first, or remove it", *clone, spec.name, *clone), false);
    record.spec = std::move(spec);
    if (!same) ++record.revision;
    workload.raise_failures = 0;
    workload.image.failures = workload.standby.failures = 0;
    workload.image.not_before = workload.standby.not_before = Instant{};
    if (same && !was_off && record.phase == OwnerPhase::up) {
      persist(workload);
      actions_.push_back(PushRoutes{});
      answer(ask, route_of(workload), true);
      return reconcile(workload, now);
    }
  }
  record.removed = record.stopped = false;
  workload.note.clear();
  workload.waiting.push_back(ask);
  emit("deploy", workload, {}, {{"revision", std::to_string(record.revision)}});
  begin_owner(workload, Evidence::requested, {}, std::nullopt, now);
}

Status ControlCore::stop(const WorkloadId& id, Instant now) {
  Workload* workload = find(id);
  if (!workload) return fail(Errc::not_found, "no workload is named \"{}\"", id);
  Record& record = workload->record;
  record.stopped = true;
  workload->owner.reset();
  if (workload->migration) end_migration(*workload, Error{Errc::canceled, fmt::format("{} was stopped", id)});
  end_resplit(*workload, fail(Errc::canceled, "{} was stopped", id));
  workload->inspection = 0;
  persist(*workload);
  if (record.phase != OwnerPhase::absent)
    call(StopCall{id, record.instance, record.epoch}, raise_limit(record.spec),
         Pending{Pending::What::stop_owner, id, record.host, record.instance, {}, record.epoch});
  record.phase = OwnerPhase::absent;
  persist(*workload);
  emit("stopped", *workload, record.host);
  answer_all(*workload, fail(Errc::canceled, "{} was stopped", id), false);
  actions_.push_back(PushRoutes{});
  (void)now;
  return {};
}

Status ControlCore::remove(const WorkloadId& id, Instant now) {
  YADO_TRY(stop(id, now), "remove");
  Record& record = find(id)->record;
  // Instances, standbys and images go when their hosts' next reports name them; the epoch stays, so that a workload
  // of the same name is never mistaken for this one.
  record.removed = true;
  record.image.reset();
  record.acknowledged.reset();
  record.standby.reset();
  persist(workloads_.at(id));
  actions_.push_back(PushRoutes{});
  return {};
}

void ControlCore::move(AskId ask, const WorkloadId& id, std::optional<HostId> host, Instant now) {
  Workload* workload = find(id);
  if (!workload) return answer(ask, fail(Errc::not_found, "no workload is named \"{}\"", id), false);
  if (workload->record.stopped) return answer(ask, fail(Errc::conflict, "{} is stopped", id), false);
  if (host && !alive(*host)) return answer(ask, fail(Errc::unavailable, "host {} does not answer", *host), false);
  if (workload->owner) return answer(ask, fail(Errc::conflict, "{} is being raised already", id), false);
  workload->waiting.push_back(ask);
  begin_owner(*workload, Evidence::requested, host ? HostId() : workload->record.host, host, now);
}

Status ControlCore::renew_image(const WorkloadId& id, Extent extent, Instant now, std::uint64_t bytes_per_second) {
  Workload* workload = find(id);
  if (!workload) return fail(Errc::not_found, "no workload is named \"{}\"", id);
  if (workload->record.spec.policy.standby == StandbyLevel::cold)
    return fail(Errc::conflict, "{} has policy.standby = \"cold\": it keeps no image", id);
  if (extent == Extent::changes && !checkpoints_owner(workload->record.spec))
    return fail(Errc::conflict, "{} is no VM with split memory: only of those there are incremental images", id);
  if (bytes_per_second != 0 && !checkpoints_owner(workload->record.spec))
    return fail(Errc::conflict, "{} is no VM with split memory: only of those the rate of a checkpoint is limited", id);
  if (bytes_per_second != 0 && bytes_per_second < 1_MiB)
    return fail(Errc::invalid_argument, "bytes_per_second: must be at least {}, as a spec's checkpoint_rate; leave it out for no limit", 1_MiB);
  workload->renew_image = true;
  workload->renew_bytes_per_second = bytes_per_second;
  workload->renew_delta = extent == Extent::changes;
  workload->image.not_before = Instant{};
  reconcile(*workload, now);
  return {};
}

// ---- gates ---------------------------------------------------------------------------------------------------------

void ControlCore::ask(AskId ask, const WorkloadId& id, Epoch observed, Evidence evidence, const HostId& suspect,
                      Instant now) {
  Workload* workload = find(id);
  if (!workload) return answer(ask, fail(Errc::not_found, "no workload is named \"{}\"", id), false);
  Record& record = workload->record;
  if (record.stopped) return answer(ask, fail(Errc::conflict, "{} is stopped", id), false);
  // A gate turns down routes older than the one it has: what it granted itself is known here, at the latest, by its ask.
  if (record.spec.policy.consistency == Consistency::shared) workload->seen = std::max(workload->seen, observed);
  // A host that does not answer will not look at what runs there.
  const bool looked_at = workload->inspection && !(evidence == Evidence::silent && observed >= record.epoch);
#ifndef YADO_CANARY_single_flight
  if (workload->owner || looked_at || workload->migration) {
    workload->waiting.push_back(ask);
    return;
  }
#endif
  if (record.phase == OwnerPhase::up && (observed < record.epoch || evidence == Evidence::asleep))
    return answer(ask, route_of(*workload), workload->last_fenced);
  if (record.phase == OwnerPhase::absent) {
    workload->waiting.push_back(ask);
    return begin_owner(*workload, Evidence::asleep, {}, std::nullopt, now);
  }
  const auto host = hosts_.find(record.host);
  const bool agent_late = host != hosts_.end() && host->second.voice == Voice::asked && host->second.late > 0;
  if (evidence == Evidence::unresponsive && alive(record.host) && !agent_late) {
    // Slow or dead? Its host can look: a frozen or stopped instance serves nobody, a busy one does. Looking is no
    // relocation: a slow application must not use up those that it needs when it dies.
    workload->waiting.push_back(ask);
    emit("suspected", *workload, suspect, {{"evidence", std::string(name_of(evidence))}});
    workload->inspection = call(InspectCall{id, record.instance, record.epoch}, 5 * settings_.heartbeat,
                                Pending{Pending::What::inspect, id, record.host, record.instance, {}, record.epoch});
    return;
  }
  if (Status admitted = admit_relocation(*workload, now); !admitted)
    return answer(ask, std::unexpected(admitted.error()), false);
  workload->waiting.push_back(ask);
  emit("suspected", *workload, suspect, {{"evidence", std::string(name_of(evidence))}});
  begin_owner(*workload, evidence, evidence == Evidence::refused ? HostId() : record.host, std::nullopt, now);
}

void ControlCore::gates(std::set<std::string> connected) {
  gates_ = std::move(connected);
  for (auto& [id, workload] : workloads_)
    if (!workload.idle_gates.empty()) sleep_if_idle(workload);
}

void ControlCore::idle(const std::string& gate, const WorkloadId& id, Epoch observed, bool is_idle, Instant now) {
  Workload* workload = find(id);
  if (!workload) return;
  Record& record = workload->record;
  if (!is_idle || observed != record.epoch) {
    workload->idle_gates.erase(gate);
    return;
  }
  workload->idle_gates.insert(gate);
  sleep_if_idle(*workload);
  (void)now;
}

void ControlCore::sleep_if_idle(Workload& workload) {
  Record& record = workload.record;
  const WorkloadId& id = record.spec.name;
  if (workload.owner || !workload.waiting.empty() || !record.spec.policy.lifetime || record.phase != OwnerPhase::up) return;
  if (!std::ranges::includes(workload.idle_gates, gates_)) return;  // somebody else is being asked for it
  workload.idle_gates.clear();
  record.phase = OwnerPhase::absent;
  persist(workload);
  actions_.push_back(PushRoutes{});  // nobody is sent there any more; then it is put to sleep
  emit("asleep", workload, record.host);
  const Pending pending{Pending::What::sleep, id, record.host, record.instance, {}, record.epoch};
  if (record.spec.policy.standby == StandbyLevel::frozen)
    call(SleepCall{id, record.instance, record.epoch}, 10s, pending);
  else
    call(StopCall{id, record.instance, record.epoch}, 10s, pending);
}

// ---- views ---------------------------------------------------------------------------------------------------------

ControlCore::Workload* ControlCore::find(const WorkloadId& id) {
  auto found = workloads_.find(id);
  return found == workloads_.end() || found->second.record.removed ? nullptr : &found->second;
}

bool ControlCore::alive(const HostId& id) const {
  auto host = hosts_.find(id);
  return host != hosts_.end() && (host->second.voice == Voice::heard || host->second.voice == Voice::asked) &&
         !host->second.report.boot.empty();
}

bool ControlCore::braked() const {
  // Who is being asked counts as silent: when control's own line fails, hosts are found silent one after the other, and
  // the first must not be relocated before the last is known.
  const auto silent = std::ranges::count_if(hosts_, [](const auto& entry) {
    return entry.second.voice == Voice::silent || entry.second.voice == Voice::asked;
  });
  return detect::brake(static_cast<std::size_t>(silent), hosts_.size());
}

/// What was asked of a host that is gone is not waited for: a raise goes to the next host at once. Should the call be
/// carried out after all, its epoch is old by then.
void ControlCore::host_lost(const HostId& id, const std::string& why, Instant now) {
  std::vector<CallId> calls;
  for (const auto& [call_id, pending] : pending_)
    if (pending.host == id) calls.push_back(call_id);
  for (CallId call_id : calls) call_done(call_id, fail(Errc::unavailable, "{}: {}", id, why), now);
}

void ControlCore::remember_effect(const HostId& id, Effect effect) {
  auto host = hosts_.find(id);
  if (host == hosts_.end() || effect.sequence < host->second.report.sequence) return;  // the report knows already
  apply(effect, host->second.report);
  host->second.effects.push_back(std::move(effect));
}

/// Who does not answer is not asked: a connection to nobody takes minutes to fail. The next tick says so, as the host would have.
CallId ControlCore::call(AgentCall what, nanoseconds limit, Pending pending) {
  if (alive(pending.host))
    actions_.push_back(Call{++last_call_, pending.host, hosts_.at(pending.host).report.agent, std::move(what), limit});
  else
    not_asked_.push_back(++last_call_);
  pending_[last_call_] = std::move(pending);
  return last_call_;
}

void ControlCore::emit(std::string kind, const Workload& workload, const HostId& host,
                       std::map<std::string, std::string> fields) {
  const Record& record = workload.record;
  actions_.push_back(
      Emit{Event{std::move(kind), record.spec.name, host, record.instance, record.epoch, std::move(fields)}});
}

void ControlCore::answer_all(Workload& workload, const Result<Route>& route, bool fenced) {
  for (AskId ask : std::exchange(workload.waiting, {})) answer(ask, route, fenced);
}

RouteState ControlCore::route_state(const Workload& workload) const {
  if (workload.record.stopped) return RouteState::stopped;
  switch (workload.record.phase) {
    case OwnerPhase::absent: return RouteState::asleep;
    case OwnerPhase::raising: return RouteState::raising;
    case OwnerPhase::up: return RouteState::up;
  }
  return RouteState::asleep;
}

Route ControlCore::route_of(const Workload& workload) const {
  const Record& record = workload.record;
  Route route{.workload = record.spec.name,
              .service = record.spec.service,
              .consistency = record.spec.policy.consistency,
              .relocations = record.spec.policy.relocations,
              .relocations_per = record.spec.policy.relocations_per,
              .lifetime = record.spec.policy.lifetime,
              .state = route_state(workload),
              .epoch = record.epoch,
              .host = record.host,
              .endpoint = record.endpoint};
  if (route.state != RouteState::up) route.host = HostId(), route.endpoint = Endpoint();
  if (route.consistency == Consistency::shared)
    route.fallback = plan::rank(record.spec, views(workload), {record.host});
  return route;
}

RouteTable ControlCore::routes() const {
  RouteTable table;
  for (const auto& [id, workload] : workloads_)
    if (!workload.record.removed && workload.record.revision > 0) table.routes.push_back(route_of(workload));
  for (const auto& [id, host] : hosts_)
    if (!host.report.boot.empty()) table.hosts.push_back(HostAddress{id, host.report.agent});
  return table;
}

std::vector<plan::HostView> ControlCore::views(const Workload& workload) const {
  const Record& record = workload.record;
  std::set<HostId> holding = holders(workload);
  if (record.spec.vm.split) std::erase_if(holding, [&](const HostId& id) { return !from_image(workload, record.spec, id, workload.owner ? workload.owner->suspect : HostId()); });
  const InstanceReport* standing = standby_of(workload);
  // Whoever is being raised counts as soon as that was decided: many at once are spread over the hosts.
  std::map<HostId, std::size_t> owners;
  for (const auto& [id, other] : workloads_)
    if (id != record.spec.name && other.record.phase != OwnerPhase::absent) ++owners[other.record.host];
  std::vector<plan::HostView> all;
  for (const auto& [id, host] : hosts_) {
    plan::HostView view{.host = id,
                        .alive = alive(id) && host.voice == Voice::heard,
                        .holds_image = record.image_current() && holding.contains(id),
                        .memory_free_bytes = host.report.memory_free_bytes,
                        .load = host.report.load,
                        .owners = owners[id]};
    view.holds_frozen = standing && record.standby_host == id && record.standby_revision == record.revision &&
                        standing->state == InstanceState::frozen;
    for (const InstanceReport& instance : host.report.instances) {
      if (instance.purpose != Purpose::owner || instance.workload != record.spec.name) continue;
      if (instance.state == InstanceState::frozen && instance.epoch.counter() + 1 >= record.epoch.counter() &&
          record.phase != OwnerPhase::up && record.spec.policy.lifetime)
        view.asleep_here = true;
      else if (stands_for_a_move(workload, instance))
        view.asleep_here = true;
    }
    all.push_back(view);
  }
  return all;
}

const InstanceReport* ControlCore::standby_of(const Workload& workload) const {
  const Record& record = workload.record;
  return record.standby && alive(record.standby_host) ? hosts_.at(record.standby_host).report.find(*record.standby) : nullptr;
}

const InstanceReport* ControlCore::owner_of(const Workload& workload) const {
  const Record& record = workload.record;
  return record.phase == OwnerPhase::up && alive(record.host) ? hosts_.at(record.host).report.find(record.instance) : nullptr;
}

std::vector<WorkloadView> ControlCore::workloads() const {
  std::vector<WorkloadView> all;
  for (const auto& [id, workload] : workloads_) {
    if (workload.record.removed || workload.record.revision == 0) continue;
    WorkloadView view{workload.record, route_state(workload), holders(workload), redundant(workload), std::nullopt, {}, workload.note};
    if (const InstanceReport* owner = owner_of(workload); owner && owner->stands_still() && view.note.empty()) view.note = "it stands still: " + owner->how;
    if (const InstanceReport* standing = standby_of(workload)) {
      view.standby = *standing;
      view.standby_host = workload.record.standby_host;
    }
    all.push_back(std::move(view));
  }
  return all;
}

std::vector<ControlCore::HostSummary> ControlCore::hosts() const {
  std::vector<HostSummary> all;
  for (const auto& [id, host] : hosts_)
    all.push_back({host.report, alive(id), host.detector.last_heard()});
  return all;
}

}  // namespace yado::control
