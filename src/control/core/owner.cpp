// The right to run: from the grant of an epoch until an owner answers or nobody is left to try.
#include "control/core/control_core.hpp"

#include <algorithm>

#include "control/core/pacing.hpp"
#include "model/names.hpp"

namespace yado::control {

void ControlCore::begin_owner(Workload& workload, Evidence evidence, const HostId& suspect, std::optional<HostId> only,
                              Instant now) {
  Record& record = workload.record;
  const WorkloadId& id = record.spec.name;
  const bool exclusive = record.spec.policy.consistency == Consistency::exclusive;
  const HostId old_host = record.host;
  const InstanceId old_instance = record.instance;
  const Epoch old_epoch = record.epoch;

  workload.owner = OwnerOperation{.evidence = evidence, .suspect = suspect};
  if (record.phase == OwnerPhase::up) workload.owner->replaces = old_epoch;
  if (only) {
    workload.owner->only = std::move(only);
    workload.owner->only_ask = workload.waiting.back();
  }
  workload.inspection = 0;  // whatever it finds is about an owner that is over
  if (workload.migration && workload.migration->step != Migration::Step::raise)
    end_migration(workload, Error{Errc::canceled, fmt::format("{} was not moved: it is raised anew ({})", id, name_of(evidence))});
  workload.memory = {};
  end_resplit(workload, fail(Errc::conflict, "{} is raised anew, with its memory as before", id));
  workload.restarted_in_raise = false;
  if (exclusive && proves_death(evidence)) leases_.proved_dead(id, old_epoch);
  grant(workload, now);
  workload.owner->fenced = exclusive || proves_death(evidence);
  if (exclusive && workload.owner->not_before > now)
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
  const auto& move = workload.migration;
  const bool expected = move && move->step == Migration::Step::raise && !move->to.empty() && !move->expected.empty() && record.instance != move->expected;
  record.instance = expected ? move->expected : InstanceId(fmt::format("{}.{}", record.spec.name, ++record.serial));
  record.phase = OwnerPhase::raising;
  record.raised_from.reset();
  workload.owner->not_before = now;
  if (record.spec.policy.consistency == Consistency::exclusive) {
    leases_.grant(record.spec.name, record.epoch, record.spec.policy.lease);
    workload.owner->not_before = std::max(now, leases_.free_at(record.spec.name));
  }
  persist(workload);
  emit("grant", workload, record.host, {{"evidence", std::string(name_of(workload.owner->evidence))}});
}

/// What a raise on `host` would be now.
ControlCore::RaisePlan ControlCore::plan_raise(const Workload& workload, const HostId& host) const {
  const Record& record = workload.record;
  const OwnerOperation& operation = *workload.owner;
  if (const auto& move = workload.migration; move && move->to == host && operation.tried.empty())
    return {.spec = with_memory_hosts(move->spec, host, operation.suspect), .image = move->image, .moves = true, .why_anew = {}};
  auto from = from_image(workload, record.spec, host, operation.suspect);
  if (!from) return {.spec = with_memory_hosts(record.spec, host, operation.suspect), .image = {}, .moves = false, .why_anew = from.error().message};
  const auto in_vain = [&](const OwnerOperation::Try& each) {
    return each.host == host && each.from_image && std::ranges::equal(from->vm.split->over, each.with, &MemoryHost::reached_alike);
  };
  // Tried with the same memory hosts, which answer as before: nothing would be another.
  if (checkpoints_owner(record.spec) && std::ranges::any_of(operation.tried, in_vain))
    return {.spec = with_memory_hosts(record.spec, host, operation.suspect), .image = {}, .moves = false, .why_anew = operation.last_error};
  return {.spec = std::move(*from), .image = record.image->id, .moves = false, .why_anew = {}};
}

/// Whether what its memory held would be there again.
bool ControlCore::goes_on(const Workload& workload, const std::vector<plan::HostView>& views, const HostId& host) const {
  const plan::HostView& view = *std::ranges::find(views, host, &plan::HostView::host);
  return view.asleep_here || view.holds_frozen || plan_raise(workload, host).image;
}

/// Where it may be raised, the best first: neither where that was tried nor at whom somebody suspects. But a VM with split memory is not begun anew before everybody was asked who has its image: the
/// suspect, too, if it answers control, and those where it failed with other memory hosts than there are now. Nothing: that is not known yet, because a host is late, or control has only just been started.
std::optional<std::vector<HostId>> ControlCore::ranking_of_owner(const Workload& workload, Instant now) const {
  const Record& record = workload.record;
  const OwnerOperation& operation = *workload.owner;
  const std::vector<plan::HostView> all = views(workload);
  // Whom nothing was heard of for a moment may be about to fall silent, or about to speak: that is known soon.
  const bool late = std::ranges::any_of(hosts_, [](const auto& entry) { return entry.second.voice == Voice::asked; });
  const auto rank_without_tried = [&](auto which) {
    std::vector<HostId> excluded{operation.suspect};
    for (const OwnerOperation::Try& each : operation.tried)
      if (which(each)) excluded.push_back(each.host);
    return plan::rank(record.spec, all, excluded);
  };
  std::vector<HostId> ranking = rank_without_tried([](const OwnerOperation::Try&) { return true; });
  const bool moves = workload.migration && operation.tried.empty();
  if (checkpoints_owner(record.spec) && !moves && (ranking.empty() || !goes_on(workload, all, ranking.front()))) {
    std::vector<HostId> with_image = plan::rank(record.spec, all, {});
    std::erase_if(with_image, [&](const HostId& host) { return !plan_raise(workload, host).image; });
    if (!with_image.empty()) return with_image;
    if (record.image_current() && (now < all_known_at_ || (late && !holders(workload).empty()))) return std::nullopt;
    if (record.leans_on_origin()) return std::vector<HostId>();
    ranking = rank_without_tried([](const OwnerOperation::Try& each) { return !each.from_image; });
  }
  if (ranking.empty() && late) return std::nullopt;
  return ranking;
}

void ControlCore::continue_owner(Workload& workload, Instant now) {
  OwnerOperation& operation = *workload.owner;
  Record& record = workload.record;
  if (operation.call != 0 || now < operation.not_before) return;

  auto known = ranking_of_owner(workload, now);
  operation.look_again = known ? Instant{} : now < all_known_at_ ? all_known_at_ : Instant::max();
  if (!known) return;
  std::vector<HostId> ranking = std::move(*known);
  if (checkpoints_owner(record.spec) && !ranking.empty() && !goes_on(workload, views(workload), ranking.front()) && go_back(workload)) {
    operation.tried.clear();  // that was another image
    return continue_owner(workload, now);
  }
  // The host that a person named is not worth a memory that goes on elsewhere.
  const auto obeys = [&] {
    if (std::ranges::find(ranking, *operation.only) == ranking.end()) return false;
    if (!checkpoints_owner(record.spec)) return true;
    const auto all = views(workload);
    return goes_on(workload, all, *operation.only) || !goes_on(workload, all, ranking.front());
  };
  if (operation.only && obeys()) ranking = {*operation.only};
  else if (operation.only) {
    // The person is told, and the service is raised wherever it can be: its old owner is over.
    std::erase(workload.waiting, operation.only_ask);
    answer(operation.only_ask, fail(Errc::unavailable, "{} cannot be moved to {}: {}", record.spec.name, *operation.only,
                                    operation.last_error.empty() ? "it may not or cannot run there" : operation.last_error),
           false);
    operation.only.reset();
  }
  if (ranking.empty()) {
    const std::string tried = operation.last_error.empty() ? "" : ": " + operation.last_error;
    return give_up(workload, Error{Errc::unavailable, fmt::format("no host is left that could run {}{}",
                                                                  record.spec.name, tried)}, now);
  }
  record.host = ranking.front();
  RaisePlan plan = plan_raise(workload, record.host);
  if (plan.spec.vm.split) {
    record.memory_hosts = plan.spec.vm.split->over;
    std::erase_if(*record.memory_hosts, &MemoryHost::leaving);
  }
  std::map<std::string, std::string> fields;
  if (checkpoints_owner(record.spec) && record.image && !plan.image) fields["detail"] = fmt::format("not from its image: {}", plan.why_anew);
  persist(workload);
  emit("raise", workload, record.host, std::move(fields));
  // Thawed, or nothing: named an image that is not there, its host does not begin it anew.
  const auto all = views(workload);
  if (checkpoints_owner(record.spec) && !plan.image && std::ranges::find(all, record.host, &plan::HostView::host)->asleep_here && record.image) plan.image = record.image->id;
  Pending pending{Pending::What::raise, record.spec.name, record.host, record.instance, plan.moves || !plan.why_anew.empty() ? ImageId() : plan.image.value_or(ImageId()), record.epoch};
  if (plan.spec.vm.split) pending.memory_hosts = plan.spec.vm.split->over;
  operation.call = call(RaiseCall{std::move(plan.spec), record.spec.name, record.instance, record.epoch, plan.image, plan.moves}, raise_limit(record.spec), std::move(pending));
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
    if (reply.way == Way::frozen) record.memory_hosts.reset();  // it goes on with those it had
    if (reply.way == Way::image && !pending.image.empty()) record.raised_from = pending.image;
    else if (reply.way == Way::image && workload.migration && workload.migration->to == pending.host) record.raised_from = workload.migration->goes_on_from;
    InstanceReport instance{.id = reply.instance, .workload = record.spec.name, .epoch = pending.epoch,
                            .state = InstanceState::running, .endpoint = reply.endpoint};
    return owner_is_up(workload, pending.host, instance, reply.sequence, now);
  }
  operation.last_error = fmt::format("{}: {}", pending.host, result.error().text());
  // A host that has seen a higher epoch (a gate's, while control was down) is asked again under a still higher one.
  if (result.error().code != Errc::stale_epoch) operation.tried.push_back({pending.host, pending.memory_hosts, !pending.image.empty()});
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
  if (workload.migration && workload.migration->to == host) record.spec.vm.split = workload.migration->spec.vm.split;
  else if (workload.migration) record.memory_hosts.reset();  // spread for a move that came to nothing
  if (workload.migration && workload.migration->to == host) end_left(workload);
  workload.migration.reset();
  if (!workload.owner) record.memory_hosts.reset(), record.raised_from.reset();  // raised without control: by what it was told then
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
  workload.migration.reset();
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

void ControlCore::owner_lost(Workload& workload, Evidence evidence, Instant now, const std::string& how) {
  Record& record = workload.record;
  if (workload.owner || record.phase != OwnerPhase::up) return;
  const HostId host = record.host;
  std::map<std::string, std::string> fields{{"evidence", std::string(name_of(evidence))}};
  if (!how.empty()) fields["detail"] = how;
  emit("owner-lost", workload, host, std::move(fields));
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

}  // namespace yado::control
