// What agents say, what their silence means, and the passing of time.
#include "control/core/control_core.hpp"

#include <algorithm>
#include <array>

#include "control/core/pacing.hpp"

namespace yado::control {

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
  for (const auto& [id, workload] : workloads_) {
    const InstanceReport *was = owner_of(workload), *is = workload.record.host == report.host ? report.find(workload.record.instance) : nullptr;
    if (is && is->stands_still() != (was && was->stands_still())) emit(is->stands_still() ? "stands-still" : "goes-on", workload, report.host, {{"why", is->how}});
  }
  host.report = report;
  std::erase_if(host.effects, [&](const Effect& effect) { return !same_boot || effect.sequence < report.sequence; });
  for (const Effect& effect : host.effects) apply(effect, host.report);
  if (!same_boot) host_lost(report.host, "it was started anew", now);
  if (new_address) actions_.push_back(PushRoutes{});

  for (const FenceReport& fence : report.fences)
    if (Workload* workload = find(fence.workload)) workload->seen = std::max(workload->seen, fence.epoch);
  for (const InstanceReport& instance : report.instances) judge_instance(report, instance, reply, now);
  for (const ImageReport& image : report.images) judge_image(report.host, image, reply);
  for (auto& [id, workload] : workloads_) {
    const Record& record = workload.record;
    if (record.phase != OwnerPhase::up || record.host != report.host || report.sequence <= workload.owner_sequence)
      continue;
    const InstanceReport* found = report.find(record.instance);
    if (!found || found->state == InstanceState::exited)
      owner_lost(workload, Evidence::exited, now, found ? found->how : "");
    else if (found->state == InstanceState::frozen && checkpoints_owner(record.spec) && !workload.migration && !workload.owner &&
             record.spec.policy.consistency == Consistency::shared && !record.spec.policy.lifetime)
      begin_owner(workload, Evidence::asleep, {}, std::nullopt, now);  // it was handed over, and nobody knows of a move any more
  }
  for (auto& [id, workload] : workloads_) {
    if (workload.owner) continue_owner(workload, now);
    reconcile(workload, now);
    if (const auto& move = workload.migration; move && move->to == report.host && !move->expected.empty()) reply.expected.push_back(move->expected);
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
    if (stands_for_a_move(*workload, instance)) return;
    // While the new owner is not up yet a shared workload's old one may go on answering: suspicion is reversible.
    if (workload->owner && record.spec.policy.consistency == Consistency::shared) return;
    return retire();
  }
  if (instance.epoch > record.epoch) {
    // A gate raised it while control was down.
    if (instance.state != InstanceState::running || record.spec.policy.consistency == Consistency::exclusive)
      return;
    emit("adopted", *workload, report.host, {{"epoch", fmt::format("{}", instance.epoch)}, {"image", instance.image ? instance.image->str() : ""}});
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

/// Of an image that is kept, and yet a delta of one that is not: it was away when the others merged theirs, and its bases are gone there.
bool ControlCore::stale(const Record& record, const ImageReport& image) {
  const ImageId& whole = image.member_of ? *image.member_of : image.id;
  return image.base && record.image && record.image->is_or_needs(whole) && std::ranges::find(record.image->bases, *image.base) == record.image->bases.end();
}

bool ControlCore::keeps(const Workload& workload, const ImageReport& image) {
  const Record& record = workload.record;
  const ImageId& whole = image.member_of ? *image.member_of : image.id;
  if (record.removed || stale(record, image)) return false;
  if (workload.image.call != 0 && workload.image.image == whole) return true;
  return std::ranges::any_of(std::array{&record.image, &record.acknowledged}, [&](const auto* kept) { return *kept && (*kept)->is_or_needs(whole); });
}

void ControlCore::judge_image(const HostId& host, const ImageReport& image, HeartbeatReply& reply) {
  Workload* workload = find(image.workload);
  const ImageId& whole = image.member_of ? *image.member_of : image.id;
  if (workload && keeps(*workload, image)) return;
  for (const auto& [id, other] : workloads_)
    if (needs_images_of(other.record, image.workload) && keeps(other, image)) return;
  if (workload && workload->migration)
    if (const Migration& move = *workload->migration; move.image == whole || std::ranges::find(move.ahead, whole) != move.ahead.end()) return;
  // First what it is needed for, deltas and the image that it is a share of; it is named with the next report.
  const auto& here = hosts_.at(host).report.images;
  if (image.member_of && std::ranges::find(here, whole, &ImageReport::id) != here.end()) return;
  if (std::ranges::find(here, whole, &ImageReport::base) != here.end()) return;
  reply.drop.push_back(DropImageCall{image.workload, workload ? workload->record.epoch : Epoch(), image.id});
}

void ControlCore::instance_exited(const HostId& host, const InstanceId& instance, const WorkloadId& id, Instant now, const std::string& how) {
  Workload* workload = find(id);
  if (!workload) return;
  Record& record = workload->record;
  if (record.standby == instance) {
    record.standby.reset();
    persist(*workload);
    emit("standby-lost", *workload, host);
    return reconcile(*workload, now);
  }
  if (record.instance == instance && record.host == host) owner_lost(*workload, Evidence::exited, now, how);
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
    case Pending::What::merge: return merge_done(*workload, pending, result, now);
    case Pending::What::spread: return spread(*workload, pending, result, now);
    case Pending::What::seal: return sealed(*workload, pending, result, now);
    case Pending::What::pull_ahead: return ahead_pulled(*workload, pending, result, now);
    case Pending::What::expect: return expected(*workload, pending, result, now);
    case Pending::What::hand_over: return handed_over(*workload, pending, result, now);
    case Pending::What::pull_handover: return handover_pulled(*workload, pending, result, now);
    case Pending::What::prepare: return standby_done(*workload, pending, result, now);
    case Pending::What::resplit: return resplit_done(*workload, pending, result, now);
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
    case Pending::What::inspect:
      if (workload->inspection == call_id) inspected(*workload, result, now);
      return;
  }
}

void ControlCore::inspected(Workload& workload, const Result<CallReply>& result, Instant now) {
  const Record& record = workload.record;
  workload.inspection = 0;
  if (workload.migration) return;  // it stands still for it: who waits is answered at its end
  if (result && result->state == InstanceState::running)
    return answer_all(workload, fail(Errc::conflict, "{} runs on {}: it is slow, not dead", record.spec.name,
                                     record.host), false);
  const bool gone = result && result->state == InstanceState::exited;
  const Evidence evidence = gone ? Evidence::exited : result ? Evidence::unresponsive : Evidence::silent;
  if (Status admitted = admit_relocation(workload, now); !admitted)
    return answer_all(workload, std::unexpected(admitted.error()), false);
  begin_owner(workload, evidence, gone ? HostId() : record.host, std::nullopt, now);
}

// ---- time ----------------------------------------------------------------------------------------------------------

void ControlCore::tick(Instant now) {
  check_hosts(now);
  refuse_not_asked(now);
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
    if (host.voice == Voice::asked && ++host.late >= patience) return host_is_silent(id, now);
    // The application does not answer, and its agent, which is due, does not either: nobody there will look.
    for (auto& [name, workload] : workloads_)
      if (workload.inspection != 0 && workload.record.host == id)
        inspected(workload, fail(Errc::timed_out, "the agent of {} is late", id), now);
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

void ControlCore::refuse_not_asked(Instant now) {
  for (const CallId id : std::exchange(not_asked_, {}))
    if (const auto call = pending_.find(id); call != pending_.end())
      call_done(id, fail(Errc::unavailable, "{} does not answer", call->second.host), now);
}

Instant ControlCore::next_deadline() const {
  if (!not_asked_.empty()) return Instant{};
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
      if (const OwnerOperation& operation = *workload.owner; operation.call == 0) consider(operation.look_again == Instant{} ? operation.not_before : operation.look_again);
      continue;
    }
    if (auto host = hosts_.find(workload.record.host); host != hosts_.end() && host->second.voice == Voice::agent_down &&
        workload.record.spec.policy.consistency == Consistency::exclusive)
      consider(host->second.agent_down_since + workload.record.spec.policy.lease);
    if (workload.record.phase == OwnerPhase::absent && !workload.record.spec.policy.lifetime)
      consider(workload.raise_not_before);
    if (workload.image.call == 0) consider(workload.image.not_before);
    if (workload.standby.call == 0) consider(workload.standby.not_before);
    if (workload.memory.call == 0) consider(workload.memory.not_before);
    if (workload.merge.call == 0) consider(workload.merge.not_before);
  }
  return next;
}

}  // namespace yado::control
