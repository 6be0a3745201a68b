#include "control/core/control_core.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "detect/brake.hpp"
#include "model/names.hpp"

namespace yado::control {
namespace {

constexpr std::uint8_t control_granter = 0;
// Pauses after failures, so that a workload that cannot start does not keep every host busy.
constexpr milliseconds first_pause = 1s;
constexpr milliseconds longest_pause = 60s;

milliseconds pause_after(int failures) {
  return std::min(longest_pause, first_pause * (1 << std::min(failures, 6)));
}

/// A raise may try three ways, each within the start limit.
nanoseconds raise_limit(const WorkloadSpec& spec) { return 3 * spec.service.ready.start_limit + 5s; }
/// A build starts, dumps and restores; a copy moves as many bytes as the image has: both are bounded by patience only.
nanoseconds side_limit(const WorkloadSpec& spec) { return 4 * spec.service.ready.start_limit + 60s; }

bool wants_owner(const Record& record) { return !record.removed && !record.stopped; }

}  // namespace

// ---- start ---------------------------------------------------------------------------------------------------------

void ControlCore::recover(std::vector<Record> records, Instant now) {
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
    // What was being raised may stand by now: its agent's first report says so. Otherwise it is tried again.
    if (kept.phase == OwnerPhase::raising) {
      workload.record.phase = OwnerPhase::absent;
      workload.restarted_in_raise = true;
      workload.raise_not_before = now + settings_.reconnect;
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
    const bool same_instance = record.revision > 0 && !record.removed && record.spec.kind == spec.kind &&
                               record.spec.container == spec.container && record.spec.service == spec.service &&
                               record.spec.policy.consistency == spec.policy.consistency;
    record.spec = std::move(spec);
    if (!same_instance) ++record.revision;
    workload.raise_failures = 0;
    workload.image.failures = workload.standby.failures = 0;
    workload.image.not_before = workload.standby.not_before = Instant{};
    if (same_instance && !was_off && record.phase == OwnerPhase::up) {
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
  workload->inspection = 0;
  persist(*workload);
  if (record.phase != OwnerPhase::absent && alive(record.host))
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

Status ControlCore::renew_image(const WorkloadId& id, Instant now) {
  Workload* workload = find(id);
  if (!workload) return fail(Errc::not_found, "no workload is named \"{}\"", id);
  if (workload->record.spec.policy.standby == StandbyLevel::cold)
    return fail(Errc::conflict, "{} has policy.standby = \"cold\": it keeps no image", id);
  workload->renew_image = true;
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
#ifndef YADO_CANARY_single_flight
  if (workload->owner || workload->inspection) {
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
  if (evidence == Evidence::unresponsive && alive(record.host)) {
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

// ---- the owner -----------------------------------------------------------------------------------------------------

void ControlCore::begin_owner(Workload& workload, Evidence evidence, const HostId& suspect, std::optional<HostId> only,
                              Instant now) {
  Record& record = workload.record;
  const WorkloadId& id = record.spec.name;
  const bool exclusive = record.spec.policy.consistency == Consistency::exclusive;
  const HostId old_host = record.host;
  const InstanceId old_instance = record.instance;
  const Epoch old_epoch = record.epoch;

  workload.owner = OwnerOperation{.evidence = evidence, .suspect = suspect};
  if (only) {
    workload.owner->only = std::move(only);
    workload.owner->only_ask = workload.waiting.back();
  }
  workload.inspection = 0;  // whatever it finds is about an owner that is over
  workload.restarted_in_raise = false;
  if (exclusive && proves_death(evidence)) leases_.proved_dead(id, old_epoch);
  grant(workload, now);
  workload.owner->fenced = exclusive || proves_death(evidence);
  if (exclusive && alive(old_host) && workload.owner->not_before > now)
    // Its host can prove the death faster than the lease ends.
    call(StopCall{id, old_instance, record.epoch}, workload.owner->not_before - now,
         Pending{Pending::What::stop_owner, id, old_host, old_instance, {}, old_epoch});
  actions_.push_back(PushRoutes{});
  continue_owner(workload, now);
}

/// A new epoch, durable before anything is done under it. The old owner is refused from here on.
void ControlCore::grant(Workload& workload, Instant now) {
  Record& record = workload.record;
  record.epoch = std::max(record.epoch, workload.seen).next(control_granter);
  record.instance = InstanceId(fmt::format("{}.{}", record.spec.name, ++record.serial));
  record.phase = OwnerPhase::raising;
  workload.owner->not_before = now;
  if (record.spec.policy.consistency == Consistency::exclusive) {
    leases_.grant(record.spec.name, record.epoch, record.spec.policy.lease);
    workload.owner->not_before = std::max(now, leases_.free_at(record.spec.name));
  }
  persist(workload);
  emit("grant", workload, record.host, {{"evidence", std::string(name_of(workload.owner->evidence))}});
}

void ControlCore::continue_owner(Workload& workload, Instant now) {
  OwnerOperation& operation = *workload.owner;
  Record& record = workload.record;
  if (operation.call != 0 || now < operation.not_before) return;

  std::vector<HostId> excluded = operation.tried;
  if (!operation.suspect.empty()) excluded.push_back(operation.suspect);
  std::vector<HostId> ranking = plan::rank(record.spec, views(workload), excluded);
  if (operation.only && std::ranges::find(ranking, *operation.only) != ranking.end()) ranking = {*operation.only};
  else if (operation.only) {
    // The person is told, and the service is raised wherever it can be: its old owner is over.
    std::erase(workload.waiting, operation.only_ask);
    answer(operation.only_ask, fail(Errc::unavailable, "{} cannot be moved to {}: {}", record.spec.name, *operation.only,
                                    operation.last_error.empty() ? "it may not or cannot run there" : operation.last_error),
           false);
    operation.only.reset();
  }
  // Whom nothing was heard of for a moment may be about to fall silent, or about to speak: that is known soon.
  const bool undecided = std::ranges::any_of(hosts_, [](const auto& entry) { return entry.second.voice == Voice::asked; });
  if (ranking.empty() && undecided) return;
  if (ranking.empty()) {
    const std::string tried = operation.last_error.empty() ? "" : ": " + operation.last_error;
    return give_up(workload, Error{Errc::unavailable, fmt::format("no host is left that could run {}{}",
                                                                  record.spec.name, tried)}, now);
  }
  record.host = ranking.front();
  persist(workload);
  std::optional<ImageId> image;
  if (record.image_revision == record.revision && holders(workload).contains(record.host)) image = record.image;
  emit("raise", workload, record.host);
  operation.call = call(RaiseCall{record.spec, record.spec.name, record.instance, record.epoch, image},
                        raise_limit(record.spec),
                        Pending{Pending::What::raise, record.spec.name, record.host, record.instance, {}, record.epoch});
}

void ControlCore::raise_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  Record& record = workload.record;
  if (pending.epoch != record.epoch || !workload.owner) return;  // overtaken by a newer grant
  OwnerOperation& operation = *workload.owner;
  operation.call = 0;
  if (result) {
    const CallReply& reply = *result;
    emit("ready", workload, pending.host,
         {{"way", std::string(name_of(reply.way))},
          {"raise_us", std::to_string(reply.times.raise.count() / 1000)},
          {"ready_us", std::to_string(reply.times.ready.count() / 1000)},
          {"detail", reply.detail}});
    InstanceReport instance{.id = reply.instance, .workload = record.spec.name, .epoch = pending.epoch,
                            .state = InstanceState::running, .endpoint = reply.endpoint};
    return owner_is_up(workload, pending.host, instance, reply.sequence, now);
  }
  operation.last_error = fmt::format("{}: {}", pending.host, result.error().text());
  // A host that has seen a higher epoch (a gate's, while control was down) is asked again under a still higher one.
  if (result.error().code != Errc::stale_epoch) operation.tried.push_back(pending.host);
  emit("raise-failed", workload, pending.host, {{"error", result.error().text()}});
  // The call may have been carried out although its answer was lost: the next attempt is a new epoch.
  const bool said_no = result.error().code != Errc::timed_out && result.error().code != Errc::unavailable;
  if (said_no && record.spec.policy.consistency == Consistency::exclusive)
    leases_.proved_dead(record.spec.name, pending.epoch);
  grant(workload, now);
  continue_owner(workload, now);
}

void ControlCore::owner_is_up(Workload& workload, const HostId& host, const InstanceReport& instance,
                              std::uint64_t sequence, Instant now) {
  Record& record = workload.record;
  record.phase = OwnerPhase::up;
  record.epoch = instance.epoch;
  record.host = host;
  record.instance = instance.id;
  record.endpoint = instance.endpoint;
  if (record.standby == instance.id) record.standby.reset();  // it was thawed: a new one is needed
  persist(workload);
  workload.owner_sequence = sequence;
  workload.last_fenced = workload.owner && workload.owner->fenced;
  workload.raise_failures = 0;
  workload.note.clear();
  workload.idle_gates.clear();
  workload.owner.reset();
  workload.inspection = 0;
  workload.restarted_in_raise = false;
  actions_.push_back(PushRoutes{});
  answer_all(workload, route_of(workload), workload.last_fenced);
  reconcile(workload, now);
}

void ControlCore::give_up(Workload& workload, Error error, Instant now) {
  Record& record = workload.record;
  record.phase = OwnerPhase::absent;
  record.host = HostId();
  persist(workload);
  workload.owner.reset();
  workload.inspection = 0;
  workload.note = error.message;
  workload.raise_not_before = now + pause_after(workload.raise_failures++);
  emit("gave-up", workload, {}, {{"error", error.text()}});
  actions_.push_back(PushRoutes{});
  answer_all(workload, std::unexpected(error), false);
}

void ControlCore::owner_lost(Workload& workload, Evidence evidence, Instant now) {
  Record& record = workload.record;
  if (workload.owner || record.phase != OwnerPhase::up) return;
  const HostId host = record.host;
  emit("owner-lost", workload, host, {{"evidence", std::string(name_of(evidence))}});
  if (proves_death(evidence)) leases_.proved_dead(record.spec.name, record.epoch);
  const bool on_demand = record.spec.policy.lifetime && workload.waiting.empty();
  if (!wants_owner(record) || (on_demand && proves_death(evidence))) {
    record.phase = OwnerPhase::absent;
    persist(workload);
    actions_.push_back(PushRoutes{});
    return;
  }
  if (Status admitted = admit_relocation(workload, now); !admitted) {
    give_up(workload, admitted.error(), now);
    workload.raise_not_before = workload.limit.retry_at(record.spec.policy.relocations_per);
    return;
  }
  begin_owner(workload, evidence, evidence == Evidence::exited ? HostId() : host, std::nullopt, now);
}

Status ControlCore::admit_relocation(Workload& workload, Instant now) {
  const Policy& policy = workload.record.spec.policy;
  if (workload.limit.admit(policy.relocations, policy.relocations_per, now)) return {};
  emit("rate-limited", workload, workload.record.host);
  return fail(Errc::rate_limited, "{} was relocated {} times in {} s", workload.record.spec.name, policy.relocations,
              to_ms(policy.relocations_per) / 1000);
}

void ControlCore::apply(const Effect& effect, HostReport& report) {
  if (effect.instance) {
    std::erase_if(report.instances, [&](const InstanceReport& known) { return known.id == effect.instance->id; });
    report.instances.push_back(*effect.instance);
  }
  if (effect.image) {
    std::erase_if(report.images, [&](const ImageReport& known) { return known.id == effect.image->id; });
    report.images.push_back(*effect.image);
  }
}

// ---- agents --------------------------------------------------------------------------------------------------------

HeartbeatReply ControlCore::heartbeat(const HostReport& report, Instant now) {
  HeartbeatReply reply;
  auto [entry, joined] = hosts_.try_emplace(report.host, Host{{}, detect::HeartbeatDetector(settings_.heartbeat, 3 * settings_.heartbeat, now)});
  Host& host = entry->second;
  const bool new_address = host.report.agent != report.agent;
  const bool same_boot = host.report.boot == report.boot;
  if (same_boot && report.sequence < host.report.sequence) return reply;  // overtaken on the way
  if (host.report.boot.empty() || !same_boot) {
    actions_.push_back(Emit{Event{"host-joined", {}, report.host, {}, {}, {}}});
    // What an earlier boot was told is forgotten: its sequence numbers mean nothing now.
    for (auto& [id, workload] : workloads_)
      if (workload.record.host == report.host) workload.owner_sequence = 0;
  }
  host.detector.heard(now);
  if (host.voice == Voice::silent || host.voice == Voice::agent_down)
    actions_.push_back(Emit{Event{"host-answers", {}, report.host, {}, {}, {}}});
  host.voice = Voice::heard;
  host.late = 0;
  host.report = report;
  std::erase_if(host.effects, [&](const Effect& effect) { return !same_boot || effect.sequence < report.sequence; });
  for (const Effect& effect : host.effects) apply(effect, host.report);
  if (!same_boot) host_lost(report.host, "it was started anew", now);
  if (new_address) actions_.push_back(PushRoutes{});

  for (const InstanceReport& instance : report.instances) judge_instance(report, instance, reply, now);
  for (const ImageReport& image : report.images) judge_image(image, reply);
  for (auto& [id, workload] : workloads_) {
    const Record& record = workload.record;
    if (record.phase != OwnerPhase::up || record.host != report.host || report.sequence <= workload.owner_sequence)
      continue;
    auto found = std::ranges::find(report.instances, record.instance, &InstanceReport::id);
    if (found == report.instances.end() || found->state == InstanceState::exited)
      owner_lost(workload, Evidence::exited, now);
  }
  for (auto& [id, workload] : workloads_) {
    if (workload.owner) continue_owner(workload, now);
    reconcile(workload, now);
  }
  return reply;
}

void ControlCore::judge_instance(const HostReport& report, const InstanceReport& instance, HeartbeatReply& reply,
                                 Instant now) {
  Workload* workload = find(instance.workload);
  auto retire = [&] {
    const Epoch epoch = workload ? workload->record.epoch : instance.epoch;
    reply.retire.push_back(StopCall{instance.workload, instance.id, epoch});
  };
  if (!workload || workload->record.removed || workload->record.stopped) return retire();
  const Record& record = workload->record;
  switch (instance.purpose) {
    case Purpose::builder:
      if (workload->image.call == 0 || workload->image.instance != instance.id) retire();
      return;
    case Purpose::standby:
      if (record.standby == instance.id && record.standby_revision == record.revision) return;
      if (workload->standby.call != 0 && workload->standby.instance == instance.id) return;
      if (workload->owner && workload->owner->call != 0) return;  // may be on its way to become the owner
      return retire();
    case Purpose::owner: break;
  }
  if (instance.epoch < record.epoch) {
    // While the new owner is not up yet a shared workload's old one may go on answering: suspicion is reversible.
    if (workload->owner && record.spec.policy.consistency == Consistency::shared) return;
    return retire();
  }
  if (instance.epoch > record.epoch) {
    // A gate raised it while control was down.
    if (instance.state != InstanceState::running || record.spec.policy.consistency == Consistency::exclusive)
      return;
    emit("adopted", *workload, report.host, {{"epoch", fmt::format("{}", instance.epoch)}});
    return owner_is_up(*workload, report.host, instance, report.sequence, now);
  }
  if (record.phase == OwnerPhase::up && (record.host != report.host || record.instance != instance.id)) return retire();
  if (record.phase == OwnerPhase::absent) {
    if (instance.state != InstanceState::running) return;  // the sleeper, or on its way
    // Nobody else was raised under this epoch. Control restarted meanwhile, and the answer went to nobody; or it gave up
    // what it could not see.
    if (!record.spec.policy.lifetime || workload->restarted_in_raise)
      return owner_is_up(*workload, report.host, instance, report.sequence, now);
    // It was to sleep and did not hear of it.
    const bool hears_now = std::ranges::any_of(pending_, [&](const auto& entry) {
      return entry.second.what == Pending::What::sleep && entry.second.instance == instance.id;
    });
    if (!hears_now && report.sequence > workload->owner_sequence) retire();
  }
}

void ControlCore::judge_image(const ImageReport& image, HeartbeatReply& reply) {
  Workload* workload = find(image.workload);
  if (workload && (workload->record.image == image.id || workload->image.image == image.id)) return;
  reply.drop.push_back(DropImageCall{image.workload, workload ? workload->record.epoch : Epoch(), image.id});
}

void ControlCore::instance_exited(const HostId& host, const InstanceId& instance, const WorkloadId& id, Instant now) {
  Workload* workload = find(id);
  if (!workload) return;
  Record& record = workload->record;
  if (record.standby == instance) {
    record.standby.reset();
    persist(*workload);
    emit("standby-lost", *workload, host);
    return reconcile(*workload, now);
  }
  if (record.instance == instance && record.host == host) owner_lost(*workload, Evidence::exited, now);
}

Result<milliseconds> ControlCore::renew(const WorkloadId& id, const InstanceId& instance, Epoch epoch, Instant now) {
  Workload* workload = find(id);
  if (!workload) return fail(Errc::not_found, "no workload is named \"{}\"", id);
  if (workload->record.phase == OwnerPhase::absent)
    return fail(Errc::not_owner, "nobody is to run {} now", id);
  // A thawed standby keeps its own name until its raise is answered; the epoch, which only this grant has, decides.
  if (workload->record.phase == OwnerPhase::up && workload->record.instance != instance)
    return fail(Errc::not_owner, "{} belongs to {}, not to {}", id, workload->record.instance, instance);
  return leases_.renew(id, epoch, now);
}

void ControlCore::call_done(CallId call_id, const Result<CallReply>& result, Instant now) {
  auto found = pending_.find(call_id);
  if (found == pending_.end()) return;
  const Pending pending = found->second;
  pending_.erase(found);
  // A removed workload's, too: its operations must not be taken for ones under way when it is deployed again.
  const auto entry = workloads_.find(pending.workload);
  if (entry == workloads_.end()) return;
  Workload* workload = &entry->second;
  Record& record = workload->record;
  switch (pending.what) {
    case Pending::What::raise: return raise_done(*workload, pending, result, now);
    case Pending::What::build:
    case Pending::What::pull: return image_done(*workload, pending, result, now);
    case Pending::What::prepare: return standby_done(*workload, pending, result, now);
    case Pending::What::sleep:
      if (!result) return;
      leases_.proved_dead(record.spec.name, pending.epoch);
      if (pending.epoch == record.epoch) workload->owner_sequence = result->sequence;
      return;
    case Pending::What::stop_owner:
      if (!result) return;
      leases_.proved_dead(record.spec.name, pending.epoch);
      if (!workload->owner) return;
      workload->owner->not_before = std::max(now, leases_.free_at(record.spec.name));
      return continue_owner(*workload, now);
    case Pending::What::inspect: {
      if (workload->inspection != call_id) return;
      workload->inspection = 0;
      if (workload->owner || pending.epoch != record.epoch) return;
      if (result && result->state == InstanceState::running)
        return answer_all(*workload, fail(Errc::conflict, "{} runs on {}: it is slow, not dead", record.spec.name,
                                          record.host), false);
      const bool gone = result && result->state == InstanceState::exited;
      const Evidence evidence = gone ? Evidence::exited : result ? Evidence::unresponsive : Evidence::silent;
      if (Status admitted = admit_relocation(*workload, now); !admitted)
        return answer_all(*workload, std::unexpected(admitted.error()), false);
      return begin_owner(*workload, evidence, gone ? HostId() : record.host, std::nullopt, now);
    }
  }
}

// ---- time ----------------------------------------------------------------------------------------------------------

void ControlCore::tick(Instant now) {
  check_hosts(now);
  for (auto& [id, workload] : workloads_) {
    if (workload.owner) continue_owner(workload, now);
    reconcile(workload, now);
  }
}

void ControlCore::check_hosts(Instant now) {
  for (auto& [id, host] : hosts_) {
    if (host.voice == Voice::heard && host.detector.silent(now)) {
      host.voice = Voice::asked;
      probe_host(id, host, now);
    } else if ((host.voice == Voice::asked || host.voice == Voice::agent_down) && host.next_probe != Instant{} &&
               now >= host.next_probe) {
      probe_host(id, host, now);
    }
  }
  if (braked()) return;
  for (auto& [id, workload] : workloads_) {
    const Record& record = workload.record;
    auto found = hosts_.find(record.host);
    if (record.phase != OwnerPhase::up || workload.owner || found == hosts_.end()) continue;
    const Host& host = found->second;
    // Without its agent an exclusive owner gets no lease: when the last one is over it stands frozen.
    const bool starved = host.voice == Voice::agent_down &&
                         record.spec.policy.consistency == Consistency::exclusive &&
                         now >= host.agent_down_since + record.spec.policy.lease;
    if (host.voice != Voice::silent && !starved) continue;
    // With a lifetime the next request raises it: nobody pays for an instance that nobody asks.
    if (record.spec.policy.lifetime) continue;
    owner_lost(workload, Evidence::silent, now);
  }
}

void ControlCore::probe_host(const HostId& id, Host& host, Instant now) {
  host.next_probe = Instant{};
  // Control was restarted and has never heard of it: there is no address to knock at.
  if (host.report.agent.port == 0) return host_is_silent(id, now);
  actions_.push_back(ProbeHost{id, host.report.agent, 2 * settings_.heartbeat});
}

void ControlCore::host_probed(const HostId& id, ProbeAnswer answer, Instant now) {
  auto found = hosts_.find(id);
  if (found == hosts_.end()) return;
  Host& host = found->second;
  if (host.voice != Voice::asked && host.voice != Voice::agent_down) return;  // it has spoken meanwhile
  if (answer == ProbeAnswer::none) return host_is_silent(id, now);
  host.next_probe = now + 2 * settings_.heartbeat;
  if (answer == ProbeAnswer::listening) {
    // On a busy machine an agent is late; a frozen one stays so. What cannot be asked to do anything is of no use here,
    // and whether its instances still answer is for the gates to see.
    constexpr int patience = 3;
    if (host.voice == Voice::asked && ++host.late >= patience) host_is_silent(id, now);
    return;
  }
  if (host.voice == Voice::agent_down) return;
  host.voice = Voice::agent_down;
  host.agent_down_since = now;
  actions_.push_back(Emit{Event{"agent-down", {}, id, {}, {}, {}}});
  host_lost(id, "its agent is down", now);
  actions_.push_back(PushRoutes{});
}

void ControlCore::host_is_silent(const HostId& id, Instant now) {
  Host& host = hosts_.at(id);
  host.voice = Voice::silent;
  actions_.push_back(Emit{Event{"host-silent", {}, id, {}, {},
                                {{"silent_ms", fmt::format("{:.0f}", to_ms(now - host.detector.last_heard()))}}}});
  if (braked()) actions_.push_back(Emit{Event{"brake", {}, id, {}, {}, {}}});
  host_lost(id, "it fell silent", now);
  actions_.push_back(PushRoutes{});  // nobody falls back on it
  for (auto& [name, workload] : workloads_)
    if (workload.owner) continue_owner(workload, now);
}

Instant ControlCore::next_deadline() const {
  Instant next = Instant::max();
  auto consider = [&](Instant when) {
    if (when != Instant{}) next = std::min(next, when);
  };
  for (const auto& [id, host] : hosts_) {
    if (host.voice == Voice::heard) consider(host.detector.silent_at());
    if (host.voice == Voice::asked || host.voice == Voice::agent_down) consider(host.next_probe);
  }
  for (const auto& [id, workload] : workloads_) {
    if (!wants_owner(workload.record)) continue;
    if (workload.owner) {
      if (workload.owner->call == 0) consider(workload.owner->not_before);
      continue;
    }
    if (auto host = hosts_.find(workload.record.host); host != hosts_.end() && host->second.voice == Voice::agent_down &&
        workload.record.spec.policy.consistency == Consistency::exclusive)
      consider(host->second.agent_down_since + workload.record.spec.policy.lease);
    if (workload.record.phase == OwnerPhase::absent && !workload.record.spec.policy.lifetime)
      consider(workload.raise_not_before);
    if (workload.image.call == 0) consider(workload.image.not_before);
    if (workload.standby.call == 0) consider(workload.standby.not_before);
  }
  return next;
}

// ---- redundancy ----------------------------------------------------------------------------------------------------

void ControlCore::reconcile(Workload& workload, Instant now) {
  Record& record = workload.record;
  if (!wants_owner(record) || workload.owner) return;
  if (record.phase == OwnerPhase::absent && !record.spec.policy.lifetime && now >= workload.raise_not_before) {
    workload.raise_not_before = now + pause_after(workload.raise_failures);
    if (std::ranges::any_of(hosts_, [](const auto& entry) { return entry.second.voice == Voice::heard && !entry.second.report.boot.empty(); }))
      begin_owner(workload, Evidence::asleep, {}, std::nullopt, now);
    return;
  }
  drop_unwanted(workload);
  if (record.phase == OwnerPhase::raising || record.spec.policy.standby == StandbyLevel::cold) return;
  // A builder and a standby are second starts: an exclusive workload must not have them (docs/adr/0005).
  if (record.spec.policy.consistency == Consistency::exclusive) return;
  if (record.revision == 0 || (record.phase == OwnerPhase::absent && record.instance.empty())) return;
  reconcile_image(workload, now);
  if (record.spec.policy.standby == StandbyLevel::frozen) reconcile_standby(workload, now);
}

/// A standby level that was lowered is obeyed too: what nobody wants any more is retired by its host's next report, and
/// no raise uses it.
void ControlCore::drop_unwanted(Workload& workload) {
  Record& record = workload.record;
  const StandbyLevel level = record.spec.policy.standby;
  const bool standby = record.standby && level != StandbyLevel::frozen;
  const bool image = record.image && level == StandbyLevel::cold;
  if (!standby && !image) return;
  if (standby) record.standby.reset();
  if (image) {
    record.image.reset();
    workload.image_acknowledged = false;
    if (workload.image.call == 0) workload.image.image = ImageId();
  }
  persist(workload);
  actions_.push_back(PushRoutes{});
}

void ControlCore::reconcile_image(Workload& workload, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.image;
  if (operation.call != 0 || now < operation.not_before) return;
  operation.not_before = Instant{};

  std::vector<HostId> candidates = plan::standby_hosts(record.spec, views(workload), record.host);
  // Alone, a host keeps its own image: it saves a cold start after the process died.
  if (candidates.empty() && alive(record.host)) candidates.push_back(record.host);
  std::erase_if(candidates, [&](const HostId& host) { return !hosts_.at(host).report.checkpoint_works; });
  if (candidates.empty()) return;

  const std::set<HostId> holding = holders(workload);
  milliseconds age{0};
  for (const HostId& host : holding)
    for (const ImageReport& image : hosts_.at(host).report.images)
      if (record.image == image.id) age = std::max(age, image.age);
  const bool current = record.image && record.image_revision == record.revision && !holding.empty();
  // A host where it failed is not asked again before the others were.
  const auto choose = [&](const std::vector<HostId>& hosts) {
    return hosts[static_cast<std::size_t>(operation.failures) % hosts.size()];
  };
  if (!current || workload.renew_image || age >= record.spec.policy.image_age) {
    operation.image = ImageId(fmt::format("{}-img.{}", record.spec.name, ++record.serial));
    operation.instance = InstanceId(fmt::format("{}.{}", record.spec.name, record.serial));
    persist(workload);  // a name is never given twice
    operation.call = call(BuildCall{record.spec, operation.instance, record.epoch, operation.image},
                          side_limit(record.spec),
                          Pending{Pending::What::build, record.spec.name, choose(candidates), operation.instance,
                                  operation.image, record.epoch, record.revision});
    return;
  }
  // Copies: where they help when the owner's host dies, so first on the others.
  if (alive(record.host) && std::ranges::find(candidates, record.host) == candidates.end() &&
      hosts_.at(record.host).report.checkpoint_works)
    candidates.push_back(record.host);
  const std::size_t wanted = std::min(settings_.image_copies, candidates.size());
  if (holding.size() >= wanted) {
    if (!workload.image_acknowledged && holding.size() >= settings_.image_copies) {
      workload.image_acknowledged = true;
      emit("image-acknowledged", workload, {}, {{"image", record.image->str()}, {"copies", std::to_string(holding.size())}});
    }
    return;
  }
  std::erase_if(candidates, [&](const HostId& host) { return holding.contains(host); });
  if (candidates.empty()) return;
  operation.image = *record.image;
  operation.call = call(PullCall{record.spec, record.epoch, *record.image, hosts_.at(*holding.begin()).report.agent},
                        side_limit(record.spec),
                        Pending{Pending::What::pull, record.spec.name, choose(candidates), {}, *record.image,
                                record.epoch, record.revision});
}

void ControlCore::image_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.image;
  operation.call = 0;
  const bool build = pending.what == Pending::What::build;
  if (pending.revision != record.revision || !wants_owner(record)) return;  // of an older spec: dropped by the next report
  if (!result) {
    operation.not_before = now + pause_after(operation.failures++);
    // A holder's copy is damaged, and nobody can say how many are: a new image replaces them all.
    if (!build && result.error().code == Errc::corrupt) workload.renew_image = true;
    emit(build ? "image-failed" : "image-copy-failed", workload, pending.host, {{"error", result.error().text()}});
    return;
  }
  operation.failures = 0;
  if (result->image) remember_effect(pending.host, Effect{result->sequence, std::nullopt, *result->image});
  if (build) {
    record.image = pending.image;
    record.image_revision = pending.revision;
    workload.renew_image = false;
    workload.image_acknowledged = false;
    persist(workload);
  }
  emit(build ? "image" : "image-copied", workload, pending.host,
       {{"image", pending.image.str()}, {"bytes", result->image ? std::to_string(result->image->bytes) : "0"}});
  actions_.push_back(PushRoutes{});
  reconcile(workload, now);
}

void ControlCore::reconcile_standby(Workload& workload, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.standby;
  if (operation.call != 0 || now < operation.not_before) return;
  operation.not_before = Instant{};
  if (record.phase != OwnerPhase::up) return;  // asleep: the sleeper is its own standby

  const InstanceReport* standing = standby_of(workload);
  const bool image_current = record.image && record.image_revision == record.revision;
  if (standing && record.standby_host != record.host && record.standby_revision == record.revision &&
      standing->state == InstanceState::frozen && standing->age < record.spec.policy.frozen_age &&
      (!image_current || standing->image == record.image))
    return;

  std::vector<HostId> candidates = plan::standby_hosts(record.spec, views(workload), record.host);
  if (candidates.empty()) return;
  const HostId& host = candidates.front();
  // Where checkpoints work a standby is a restored image: wait for it. Elsewhere it is started, then frozen.
  const bool from_image = image_current && holders(workload).contains(host);
  if (!from_image && hosts_.at(host).report.checkpoint_works) return;

  operation.instance = InstanceId(fmt::format("{}.{}", record.spec.name, ++record.serial));
  persist(workload);
  operation.call = call(PrepareCall{record.spec, operation.instance, record.epoch,
                                    from_image ? record.image : std::nullopt},
                        side_limit(record.spec),
                        Pending{Pending::What::prepare, record.spec.name, host, operation.instance,
                                from_image ? *record.image : ImageId(), record.epoch, record.revision});
}

void ControlCore::standby_done(Workload& workload, const Pending& pending, const Result<CallReply>& result,
                               Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.standby;
  operation.call = 0;
  if (pending.revision != record.revision || !wants_owner(record)) return;  // retired by the next report
  if (!result) {
    operation.not_before = now + pause_after(operation.failures++);
    emit("standby-failed", workload, pending.host, {{"error", result.error().text()}});
    return;
  }
  operation.failures = 0;
  record.standby = pending.instance;
  record.standby_host = pending.host;
  record.standby_revision = pending.revision;
  persist(workload);
  InstanceReport standing{.id = pending.instance, .workload = record.spec.name, .purpose = Purpose::standby,
                          .state = InstanceState::frozen};
  if (!pending.image.empty()) standing.image = pending.image;
  remember_effect(pending.host, Effect{result->sequence, standing, std::nullopt});
  emit("standby", workload, pending.host, {{"way", std::string(name_of(result->way))}});
  actions_.push_back(PushRoutes{});  // the ranking that gates keep for the time without control
  reconcile(workload, now);
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

CallId ControlCore::call(AgentCall what, nanoseconds limit, Pending pending) {
  const Host& host = hosts_.at(pending.host);
  actions_.push_back(Call{++last_call_, pending.host, host.report.agent, std::move(what), limit});
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
  const std::set<HostId> holding = holders(workload);
  const InstanceReport* standing = standby_of(workload);
  std::vector<plan::HostView> all;
  for (const auto& [id, host] : hosts_) {
    plan::HostView view{.host = id,
                        .alive = alive(id) && host.voice == Voice::heard,
                        .holds_image = record.image_revision == record.revision && holding.contains(id),
                        .memory_free_bytes = host.report.memory_free_bytes,
                        .load = host.report.load};
    view.holds_frozen = standing && record.standby_host == id && record.standby_revision == record.revision &&
                        standing->state == InstanceState::frozen;
    for (const InstanceReport& instance : host.report.instances) {
      if (instance.purpose != Purpose::owner) continue;
      if (instance.workload != record.spec.name)
        ++view.owners;
      else if (instance.state == InstanceState::frozen && instance.epoch.counter() + 1 >= record.epoch.counter() &&
               record.phase != OwnerPhase::up && record.spec.policy.lifetime)
        view.asleep_here = true;
    }
    all.push_back(view);
  }
  return all;
}

std::set<HostId> ControlCore::holders(const Workload& workload) const {
  std::set<HostId> found;
  for (const auto& [id, host] : hosts_)
    if (alive(id) && std::ranges::any_of(host.report.images, [&](const ImageReport& image) {
          return workload.record.image == image.id;
        }))
      found.insert(id);
  return found;
}

const InstanceReport* ControlCore::standby_of(const Workload& workload) const {
  const Record& record = workload.record;
  if (!record.standby || !alive(record.standby_host)) return nullptr;
  const auto& instances = hosts_.at(record.standby_host).report.instances;
  auto found = std::ranges::find(instances, *record.standby, &InstanceReport::id);
  return found == instances.end() ? nullptr : &*found;
}

std::vector<WorkloadView> ControlCore::workloads() const {
  std::vector<WorkloadView> all;
  for (const auto& [id, workload] : workloads_) {
    if (workload.record.removed || workload.record.revision == 0) continue;
    WorkloadView view{workload.record, route_state(workload), holders(workload), std::nullopt, {}, workload.note};
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
