#include "agent/core/agent_core.hpp"

#include <algorithm>

#include "model/names.hpp"

namespace yado::agent {
namespace {

/// What the papers' measurements say of a raise by each way, against each other.
int usual(Way way) {
  switch (way) {
    case Way::frozen: return 1;
    case Way::image: return 7;
    case Way::cold: return 20;
  }
  return 20;
}

/// What a raise by `way` will take. What was never measured here is taken to stand as usual to what was, to slower ways
/// rather than to faster ones: so each way is tried once before a slower one, and then judged by what it took.
nanoseconds expected(const std::map<Way, nanoseconds>& took, Way way) {
  if (auto known = took.find(way); known != took.end()) return known->second;
  std::optional<nanoseconds> by_slower, by_faster;
  for (const auto& [other, time] : took) {
    const nanoseconds usually = time * usual(way) / usual(other);
    if (usual(other) > usual(way)) by_slower = std::min(by_slower.value_or(usually), usually);
    else by_faster = std::max(by_faster.value_or(usually), usually);
  }
  return by_slower.value_or(by_faster.value_or(50ms * usual(way)));
}

/// One slow raise on a busy host is no verdict.
void learn(std::map<Way, nanoseconds>& took, Way way, nanoseconds last) {
  const auto [known, first] = took.emplace(way, last);
  if (!first) known->second = (known->second + last) / 2;
}

}  // namespace

void AgentCore::recover_fence(const WorkloadId& workload, Epoch epoch) { workloads_[workload].fence = epoch; }

void AgentCore::recover_spec(WorkloadSpec spec) {
  const WorkloadId id = spec.name;
  workloads_[id].spec = std::move(spec);
}

void AgentCore::adopt(const InstanceReport& instance, Instant now) {
  instances_[instance.id] = Instance{instance, now - instance.age};
  Known& known = workloads_[instance.workload];
  known.fence = std::max(known.fence, instance.epoch);
  // A builder or a start that was under way when the agent died has nobody who waits for it.
  const bool unfinished = instance.purpose == Purpose::builder || instance.state == InstanceState::starting;
  if (unfinished || instance.state == InstanceState::exited) kill(instance.id);
}

/// The fence. A raise makes an owner, so it must be newer than every epoch seen. Stopping, freezing and judging concern
/// one instance, whose own epoch counts. The others concern images and standbys, which own nothing.
bool AgentCore::admit(CallId id, const AgentCall& what) {
#ifndef YADO_CANARY_epoch
  const WorkloadId& workload = workload_of(what);
  const Epoch epoch = epoch_of(what);
  auto refuse = [&](Epoch newer) {
    reply(id, fail(Errc::stale_epoch, "{} is at epoch {} here; {} is over", workload, newer, epoch));
    return false;
  };
  if (std::holds_alternative<RaiseCall>(what) && epoch < fence(workload)) return refuse(fence(workload));
  const InstanceId* instance = nullptr;
  if (const auto* stop = std::get_if<StopCall>(&what)) instance = &stop->instance;
  if (const auto* sleep = std::get_if<SleepCall>(&what)) instance = &sleep->instance;
  if (const auto* inspect = std::get_if<InspectCall>(&what)) instance = &inspect->instance;
  if (const auto* handover = std::get_if<HandoverCall>(&what)) instance = &handover->instance;
  if (const auto* resplit = std::get_if<ResplitCall>(&what)) instance = &resplit->instance;
  if (instance)
    if (auto found = instances_.find(*instance); found != instances_.end() && epoch < found->second.report.epoch)
      return refuse(found->second.report.epoch);
#endif
  return true;
}

/// From now on nothing older is raised here, whatever happens to this raise.
void AgentCore::raise_fence(const WorkloadId& workload, Epoch epoch) {
  Known& known = workloads_[workload];
  if (epoch <= known.fence) return;
  known.fence = epoch;
  actions_.push_back(PersistFence{workload, epoch});
  if (known.raise && known.raise->call.epoch < epoch)
    abandon_raise(known, Error{Errc::stale_epoch, fmt::format("{} was granted again, under {}", workload, epoch)});
}

/// Also when only its memory hosts are reached elsewhere now, which makes it no other spec.
void AgentCore::remember(Known& known, const WorkloadSpec& spec) {
  const auto reached_alike = [&] {
    const auto &was = known.spec->vm.split, &is = spec.vm.split;
    return !is || std::ranges::equal(was->over, is->over, &MemoryHost::reached_alike);
  };
  if (known.spec == spec && reached_alike()) return;
  known.spec = spec;
  actions_.push_back(PersistSpec{spec});
}

void AgentCore::call(CallId id, const AgentCall& what, Instant now) {
  if (!admit(id, what)) return;
  if (const auto* c = std::get_if<RaiseCall>(&what)) return raise(id, *c, now);
  if (const auto* c = std::get_if<PrepareCall>(&what)) return prepare(id, *c, now);
  if (const auto* c = std::get_if<SleepCall>(&what)) return sleep(id, *c, now);
  if (const auto* c = std::get_if<StopCall>(&what)) return stop(id, *c);
  if (const auto* c = std::get_if<PullCall>(&what)) remember(workloads_[c->spec.name], c->spec);
  if (const auto* c = std::get_if<ResplitCall>(&what)) {
    if (!instances_.contains(c->instance)) return reply(id, fail(Errc::not_found, "{} is not here", c->instance));
    remember(workloads_[c->spec.name], c->spec);
  }
  if (const auto* c = std::get_if<InspectCall>(&what); c && !instances_.contains(c->instance))
    return reply(id, CallReply{.instance = c->instance, .state = InstanceState::exited, .sequence = sequence_});
  for (auto& [other, side] : sides_)
    if (side.what == what) {
      side.callers.push_back(id);
      return;
    }
  sides_[id] = SideCall{what, {id}};
  actions_.push_back(Side{id, what});
}

void AgentCore::reply_all(const std::vector<CallId>& ids, const Result<CallReply>& result) {
  for (CallId id : ids) reply(id, result);
}

// ---- raise ---------------------------------------------------------------------------------------------------------

InstanceId AgentCore::frozen_instance(const WorkloadId& workload) const {
  for (const auto& [id, instance] : instances_)
    if (instance.report.workload == workload && instance.report.state == InstanceState::frozen && !instance.ending &&
        instance.report.purpose != Purpose::builder && !sleeping_.contains(id) && !preparing_.contains(id))
      return id;
  return {};
}

void AgentCore::raise(CallId id, const RaiseCall& call, Instant now) {
  Known& known = workloads_[call.workload];
  if (call.spec) remember(known, *call.spec);
  if (!known.spec) return reply(id, fail(Errc::not_found, "this host was never told the spec of {}", call.workload));
  raise_fence(call.workload, call.epoch);

  if (known.raise && known.raise->call.epoch == call.epoch) {
    known.raise->callers.push_back(id);  // the same question again
    return;
  }
  for (auto& [other_id, other] : instances_) {
    if (other.report.workload != call.workload || other.report.purpose != Purpose::owner || other.ending) continue;
    if (other.report.epoch == call.epoch && other.report.state == InstanceState::running && !sleeping_.contains(other_id))
      return reply(id, CallReply{.instance = other_id, .endpoint = other.report.endpoint, .sequence = sequence_});
  }
  Raise raise{.call = call, .callers = {id}, .started = now};
  if (!raise.call.image && !call.spec)
    if (auto newest = newest_.find(call.workload); newest != newest_.end()) raise.call.image = newest->second;
  // Whoever ran here before must not stand beside the new owner. A sleeper is kept: it is the fastest way.
  const bool alone = known.spec->policy.consistency == Consistency::exclusive;
  for (auto& [other_id, other] : instances_) {
    if (other.report.workload != call.workload || other.report.purpose != Purpose::owner) continue;
    if (sleeping_.contains(other_id) && !other.ending) {
      raise.awaits.insert(other_id);
      continue;
    }
    if (other.report.state != InstanceState::frozen) kill(other_id);
    if (other.ending && alone) raise.awaits.insert(other_id);
  }
  known.raise = std::move(raise);
  continue_raise(call.workload, known, now);
}

void AgentCore::continue_raise(const WorkloadId& id, Known& known, Instant now) {
  Raise& raise = *known.raise;
  if (!raise.awaits.empty()) return;
  if (!std::exchange(raise.begun, true)) {
    const bool image = raise.call.image && images_.contains(*raise.call.image);
    // What a memory holds is not given up for what may be another host's fault, or for the sake of time: control asks once more, without an image. A gate cannot know whether it may.
    const bool frozen = !raise.call.only_image && !frozen_instance(id).empty();
    const bool keeps_memory = known.spec->vm.split && (frozen || (raise.call.spec ? raise.call.image.has_value() : known.spec->policy.standby != StandbyLevel::cold));
    raise.ways.clear();
    if (!raise.call.only_image && !keeps_memory) raise.ways.push_back(Way::cold);
    if (image) raise.ways.push_back(Way::image);
    if (frozen) raise.ways.push_back(Way::frozen);
    if (raise.ways.empty()) raise.detail = raise.call.image ? fmt::format("image {} is not here", *raise.call.image) : "no image of it is here, and only control has it started anew";
    const Way best = raise.ways.empty() ? Way::image : raise.ways.back();
    if (!keeps_memory) std::ranges::stable_sort(raise.ways, [&](Way a, Way b) { return expected(known.took, a) > expected(known.took, b); });
    if (const Way fastest = raise.ways.empty() ? best : raise.ways.back(); fastest != best)
      raise.detail = fmt::format("{} takes {:.0f} ms here, {} {:.0f} ms", name_of(best), to_ms(expected(known.took, best)),
                                 name_of(fastest), to_ms(expected(known.took, fastest)));
  }
  next_way(id, known, now);
}

void AgentCore::no_longer_awaited(const WorkloadId& workload, const InstanceId& instance, Instant now) {
  Known& known = workloads_[workload];
  if (known.raise && known.raise->awaits.erase(instance) > 0) continue_raise(workload, known, now);
}

InstanceId AgentCore::unused_name(const InstanceId& wanted, int attempt) const {
  InstanceId name = attempt == 1 ? wanted : InstanceId(fmt::format("{}-{}", wanted, attempt));
  while (instances_.contains(name)) name = InstanceId(fmt::format("{}-{}", wanted, ++attempt));
  return name;
}

void AgentCore::next_way(const WorkloadId& id, Known& known, Instant now) {
  Raise& raise = *known.raise;
  while (!raise.ways.empty()) {
    raise.current = raise.ways.back();
    raise.ways.pop_back();
    const int attempt = ++raise.attempts;
    if (raise.current == Way::frozen) {
      raise.instance = frozen_instance(id);
      if (raise.instance.empty()) continue;
      Instance& instance = instances_.at(raise.instance);
      instance.report.purpose = Purpose::owner;
      instance.report.epoch = raise.call.epoch;
      instance.report.state = InstanceState::starting;
      instance.since = now;
      actions_.push_back(Promote{raise.instance, *known.spec, raise.call.epoch});
      return;
    }
    // A second attempt has a name of its own: the remains of the first may still be on their way out.
    raise.instance = unused_name(raise.call.instance, attempt);
    const auto image = raise.current == Way::image ? raise.call.image : std::nullopt;
    instances_[raise.instance] = Instance{InstanceReport{.id = raise.instance, .workload = id, .epoch = raise.call.epoch,
                                                         .image = image}, now};
    actions_.push_back(Launch{raise.instance, *known.spec, Purpose::owner, raise.call.epoch, raise.current, image});
    return;
  }
  const std::vector<CallId> callers = raise.callers;
  const std::string detail = raise.detail;
  known.raise.reset();
  reply_all(callers, fail(Errc::application, "{} did not start: {}", id, detail));
}

void AgentCore::abandon_raise(Known& known, const Error& why) {
  const std::vector<CallId> callers = known.raise->callers;
  kill(known.raise->instance);
  known.raise.reset();
  reply_all(callers, std::unexpected(why));
}

void AgentCore::launched(const InstanceId& id, const Result<Launched>& result, Instant now) {
  auto found = instances_.find(id);
  if (found == instances_.end() || found->second.ending) return;
  Instance& instance = found->second;
  const WorkloadId workload = instance.report.workload;
  Known& known = workloads_[workload];
  if (auto prepared = preparing_.find(id); prepared != preparing_.end()) {
    const std::vector<CallId> callers = std::move(prepared->second);
    preparing_.erase(prepared);
    if (!result) {
      kill(id);
      return reply_all(callers, std::unexpected(result.error()));
    }
    instance.report.state = InstanceState::frozen;
    instance.report.endpoint = result->endpoint;
    instance.since = now;
    known.took.erase(Way::frozen);  // what is new was never measured
    return reply_all(callers, CallReply{.instance = id, .way = instance.report.image ? Way::image : Way::cold,
                                        .times = result->times, .sequence = sequence_});
  }
  if (!known.raise || known.raise->instance != id) return kill(id);  // nobody wants it any more
  Raise& raise = *known.raise;
  // Who keeps its memory knows of a later grant: no other way of raising it under this one would be another.
  if (!result && result.error().code == Errc::stale_epoch) return abandon_raise(known, result.error());
  if (!result) {
    kill(id);
    if (!raise.detail.empty()) raise.detail += "; ";
    raise.detail += fmt::format("{}: {}", name_of(raise.current), result.error().text());
    raise.instance = InstanceId();
    if (known.spec->policy.consistency == Consistency::exclusive) raise.awaits.insert(id);
    return continue_raise(workload, known, now);
  }
  instance.report.state = InstanceState::running;
  instance.report.endpoint = result->endpoint;
  instance.since = now;
  learn(known.took, raise.current, result->times.raise + result->times.ready);
  const Raise done = std::move(raise);
  known.raise.reset();
  for (CallId caller : done.callers)
    reply(caller, CallReply{.instance = id, .endpoint = result->endpoint, .way = done.current, .times = result->times,
                            .sequence = sequence_, .detail = done.detail});
  // A standby or sleeper that stands here still, because another way was taken, is control's to retire.
}

// ---- the other calls -----------------------------------------------------------------------------------------------

void AgentCore::prepare(CallId id, const PrepareCall& call, Instant now) {
  Known& known = workloads_[call.spec.name];
  remember(known, call.spec);
  if (auto found = instances_.find(call.instance); found != instances_.end()) {
    if (found->second.report.state == InstanceState::frozen && !found->second.ending)
      return reply(id, CallReply{.instance = call.instance, .sequence = sequence_});
    if (auto preparing = preparing_.find(call.instance); preparing != preparing_.end() && !found->second.ending) {
      preparing->second.push_back(id);  // the same question again
      return;
    }
    return reply(id, fail(Errc::conflict, "{} is {} here already", call.instance,
                          found->second.ending ? "ending" : name_of(found->second.report.state)));
  }
  if (call.image && !images_.contains(*call.image))
    return reply(id, fail(Errc::not_found, "image {} is not on this host", *call.image));
  instances_[call.instance] = Instance{InstanceReport{.id = call.instance, .workload = call.spec.name,
                                                      .purpose = Purpose::standby, .image = call.image}, now};
  preparing_[call.instance] = {id};
  actions_.push_back(Launch{call.instance, call.spec, Purpose::standby, Epoch(),
                            call.image ? Way::image : Way::cold, call.image});
}

void AgentCore::sleep(CallId id, const SleepCall& call, Instant now) {
  auto found = instances_.find(call.instance);
  if (found == instances_.end() || found->second.ending)
    return reply(id, fail(Errc::not_found, "{} does not run here", call.instance));
  if (found->second.report.state == InstanceState::frozen)
    return reply(id, CallReply{.instance = call.instance, .sequence = sequence_});
  if (auto sleeping = sleeping_.find(call.instance); sleeping != sleeping_.end()) {
    sleeping->second.push_back(id);  // the same question again
    return;
  }
  if (found->second.report.state != InstanceState::running)
    return reply(id, fail(Errc::conflict, "{} is {}", call.instance, name_of(found->second.report.state)));
  sleeping_[call.instance] = {id};
  actions_.push_back(Freeze{call.instance});
  (void)now;
}

void AgentCore::frozen(const InstanceId& instance, const Status& result, Instant now) {
  auto sleeping = sleeping_.find(instance);
  auto found = instances_.find(instance);
  if (sleeping == sleeping_.end() || found == instances_.end() || found->second.ending) return;  // gone() answers
  const std::vector<CallId> callers = std::move(sleeping->second);
  sleeping_.erase(sleeping);
  const WorkloadId workload = found->second.report.workload;
  if (!result) {
    reply_all(callers, std::unexpected(result.error()));
    // Nobody knows in what state it is: a raise that waits for it goes another way, once it is gone.
    if (workloads_[workload].raise && workloads_[workload].raise->awaits.contains(instance)) kill(instance);
    return;
  }
  found->second.report.state = InstanceState::frozen;
  found->second.since = now;
  reply_all(callers, CallReply{.instance = instance, .sequence = sequence_});
  no_longer_awaited(workload, instance, now);
}

void AgentCore::stop(CallId id, const StopCall& call) {
  InstanceId ends = call.instance;
  if (Known& known = workloads_[call.workload];
      known.raise && (known.raise->instance == call.instance || known.raise->call.instance == call.instance)) {
    if (!known.raise->instance.empty()) ends = known.raise->instance;  // the attempt under way has another name
    abandon_raise(known, Error{Errc::canceled, fmt::format("{} was stopped", call.instance)});
  }
  if (!instances_.contains(ends)) return reply(id, CallReply{.instance = call.instance, .sequence = sequence_});
  waiting_gone_[ends].push_back(id);
  kill(ends);
}

void AgentCore::kill(const InstanceId& instance) {
  auto found = instances_.find(instance);
  if (found == instances_.end() || found->second.ending) return;
  found->second.ending = true;
  actions_.push_back(Kill{instance});
}

void AgentCore::gone(const InstanceId& instance, Instant now) {
  auto found = instances_.find(instance);
  if (found == instances_.end()) return;
  const WorkloadId workload = found->second.report.workload;
  instances_.erase(found);
  const auto answer = [&](std::map<InstanceId, std::vector<CallId>>& waiting, const Result<CallReply>& result) {
    if (auto node = waiting.extract(instance)) reply_all(node.mapped(), result);
  };
  answer(preparing_, fail(Errc::canceled, "{} was stopped", instance));
  answer(sleeping_, fail(Errc::canceled, "{} was stopped", instance));
  answer(waiting_gone_, CallReply{.instance = instance, .sequence = sequence_});
  no_longer_awaited(workload, instance, now);
}

void AgentCore::side_done(CallId id, Result<CallReply> result, Instant now) {
  auto found = sides_.find(id);
  if (found == sides_.end()) return;
  const std::vector<CallId> callers = std::move(found->second.callers);
  if (const auto* drop = std::get_if<DropImageCall>(&found->second.what); drop && result) images_.erase(drop->image);
  sides_.erase(found);
  if (result && result->image) {
    images_.insert(result->image->id);
    workloads_[result->image->workload].took.erase(Way::image);  // what is new was never measured
  }
  if (result) result->sequence = sequence_;
  reply_all(callers, result);
  (void)now;
}

bool AgentCore::exited(const InstanceId& id, const std::string& how, Instant now) {
  auto found = instances_.find(id);
  if (found == instances_.end()) return false;
  Instance& instance = found->second;
  if (instance.ending) return false;  // asked for: gone() follows
  const bool news = instance.report.purpose != Purpose::builder && instance.report.state != InstanceState::starting;
  if (instance.report.state == InstanceState::starting) return false;  // launched() says so, with the reason
  instance.report.state = InstanceState::exited;
  instance.report.how = how;
  kill(id);  // its supervisor and what else is left of it
  (void)now;
  return news;
}

void AgentCore::lease_state(const InstanceId& id, bool runs, Instant now) {
  auto found = instances_.find(id);
  if (found == instances_.end()) return;
  InstanceState& state = found->second.report.state;
  if (runs && state == InstanceState::frozen && found->second.report.purpose == Purpose::owner)
    state = InstanceState::running;
  else if (!runs && state == InstanceState::running)
    state = InstanceState::frozen;
  else
    return;
  found->second.since = now;
}

void AgentCore::stands(const InstanceId& id, const std::string& why) {
  const auto found = instances_.find(id);
  if (found != instances_.end() && found->second.report.state != InstanceState::exited) found->second.report.how = why;
}

// ---- views ---------------------------------------------------------------------------------------------------------

std::vector<InstanceReport> AgentCore::report(std::uint64_t& sequence, Instant now) {
  sequence = ++sequence_;
  std::vector<InstanceReport> all;
  for (const auto& [id, instance] : instances_) {
    if (instance.ending && instance.report.state != InstanceState::exited) continue;
    InstanceReport report = instance.report;
    report.age = std::chrono::duration_cast<milliseconds>(now - instance.since);
    all.push_back(std::move(report));
  }
  return all;
}

Epoch AgentCore::fence(const WorkloadId& workload) const {
  auto found = workloads_.find(workload);
  return found == workloads_.end() ? Epoch() : found->second.fence;
}

std::vector<FenceReport> AgentCore::fences() const {
  std::vector<FenceReport> all;
  for (const auto& [workload, known] : workloads_)
    if (known.fence != Epoch()) all.push_back({workload, known.fence});
  return all;
}

const WorkloadSpec* AgentCore::spec(const WorkloadId& workload) const {
  auto found = workloads_.find(workload);
  return found == workloads_.end() || !found->second.spec ? nullptr : &*found->second.spec;
}

}  // namespace yado::agent
