// What is missing from what is wanted: an owner, a ready image on enough hosts, a frozen standby.
#include "control/core/control_core.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "control/core/pacing.hpp"
#include "model/names.hpp"

namespace yado::control {

void ControlCore::reconcile(Workload& workload, Instant now) {
  Record& record = workload.record;
  if (!wants_owner(record) || workload.owner) return;
  // A pause that is over is over, also for what is not wanted any more: next_deadline() must not name it again.
  for (SideOperation* side : {&workload.image, &workload.standby, &workload.memory, &workload.merge})
    if (now >= side->not_before) side->not_before = Instant{};
  if (record.phase == OwnerPhase::absent && !record.spec.policy.lifetime && now >= workload.raise_not_before) {
    workload.raise_not_before = now + pause_after(workload.raise_failures);
    if (std::ranges::any_of(hosts_, [](const auto& entry) { return entry.second.voice == Voice::heard && !entry.second.report.boot.empty(); }))
      begin_owner(workload, Evidence::asleep, {}, std::nullopt, now);
    return;
  }
  drop_unwanted(workload);
  if (workload.migration) return continue_migration(workload, now);
  reconcile_memory(workload, now);
  if (record.phase == OwnerPhase::raising || record.spec.policy.standby == StandbyLevel::cold) return;
  // A builder and a standby are second starts: an exclusive workload must not have them (docs/adr/0005). A checkpoint of
  // the owner is none.
  if (record.spec.policy.consistency == Consistency::exclusive && !checkpoints_owner(record.spec)) return;
  if (record.revision == 0 || (record.phase == OwnerPhase::absent && record.instance.empty())) return;
  reconcile_image(workload, now);
  reconcile_chain(workload, now);
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
    record.acknowledged.reset();
    workload.image_acknowledged = false;
  }
  persist(workload);
  actions_.push_back(PushRoutes{});
}

/// Containers need a CRIU that works there; VMs need nothing that running them does not.
bool ControlCore::takes_images(const HostId& host, const WorkloadSpec& spec) const {
  return spec.kind == Kind::vm || hosts_.at(host).report.checkpoint_works;
}

bool ControlCore::checkpoints_owner(const WorkloadSpec& spec) { return spec.kind == Kind::vm && spec.vm.split.has_value(); }

/// What the next image of its owner may be a delta of, once that is acknowledged; or why of nothing.
Result<ImageId> ControlCore::base_of_next(const Workload& workload) const {
  const Record& record = workload.record;
  if (!record.image) return fail(Errc::not_found, "there is no image of it yet");
  const ReadyImage& image = *record.image;
  if (!record.image_current()) return fail(Errc::conflict, "{} is of an earlier spec", image.id);
  if (image.origin) return fail(Errc::conflict, "{} is of {}, and a chain is of one workload", image.id, *image.origin);
  if (!record.owner_counts_from_image()) return fail(Errc::conflict, "{} is of {}, and {} runs now", image.id, image.of, record.instance);
  if (image.bases.size() + 2 > settings_.chain_images)
    return fail(Errc::conflict, "{} is the last of a chain of {} images, the most that there may be", image.id, image.bases.size() + 1);
  return image.id;
}

std::vector<HostAddress> ControlCore::agents_alive() const {
  std::vector<HostAddress> agents;
  for (const auto& [id, host] : hosts_)
    if (alive(id)) agents.push_back({id, host.report.agent});
  return agents;
}

void ControlCore::reconcile_image(Workload& workload, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.image;
  if (operation.call != 0 || now < operation.not_before) return;
  operation.not_before = Instant{};

  std::vector<HostId> candidates = plan::standby_hosts(record.spec, views(workload), record.host);
  // Alone, a host keeps its own image: it saves a cold start after the process died.
  if (candidates.empty() && alive(record.host)) candidates.push_back(record.host);
  std::erase_if(candidates, [&](const HostId& host) { return !takes_images(host, record.spec); });
  if (candidates.empty()) return;
  const bool of_owner = checkpoints_owner(record.spec);

  const std::set<HostId> holding = holders(workload);
  milliseconds age{0};
  for (const HostId& host : holding)
    for (const ImageReport& image : hosts_.at(host).report.images)
      if (record.has_image(image.id)) age = std::max(age, image.age);
  const bool current = record.image_current() && !holding.empty();
  if (current && !workload.image_acknowledged && redundant(workload)) {
    workload.image_acknowledged = true;
    if (record.acknowledged) {
      record.acknowledged.reset();
      persist(workload);
    }
    emit("image-acknowledged", workload, {}, {{"image", record.image->id.str()}, {"copies", std::to_string(holding.size())}});
  }
  // Copies: where they help when the owner's host dies, so first on the others.
  std::vector<HostId> keepers = candidates;
  if (alive(record.host) && std::ranges::find(keepers, record.host) == keepers.end() && takes_images(record.host, record.spec))
    keepers.push_back(record.host);
  std::optional<Copy> copy;
  if (current) {
    auto wanted = copy_wanted(workload, keepers);
    if (wanted && copies_its_image(workload)) copy = std::move(*wanted);
    else if (!wanted) workload.renew_image = true, workload.renew_delta = false;
  }
  // What a delta goes on from is copied before it is taken, unless that has failed.
  Result<ImageId> base = base_of_next(workload);
  const bool copy_first = workload.renew_delta && base && copy && operation.failures == 0;
  if (!copy_first && (!current || workload.renew_image || age >= record.spec.policy.image_age)) {
    if (of_owner && (record.phase != OwnerPhase::up || workload.memory.call != 0)) return;
    if (base && !workload.image_acknowledged) base = fail(Errc::conflict, "{} is not on {} hosts", *base, settings_.image_copies);
    operation.why_whole = base || !workload.renew_delta ? "" : base.error().message;
    operation.image = ImageId(fmt::format("{}-img.{}", record.spec.name, ++record.serial));
    operation.instance = of_owner ? record.instance : InstanceId(fmt::format("{}.{}", record.spec.name, record.serial));
    persist(workload);  // a name is never given twice
    operation.call = call(BuildCall{record.spec, operation.instance, record.epoch, operation.image, workload.renew_delta && base ? std::optional(*base) : std::nullopt, of_owner ? agents_alive() : std::vector<HostAddress>(), workload.renew_bytes_per_second},
                          side_limit(record.spec),
                          // A host where it failed is not asked again before the others were.
                          Pending{Pending::What::build, record.spec.name, of_owner ? record.host : candidates[static_cast<std::size_t>(operation.failures) % candidates.size()],
                                  operation.instance, operation.image, record.epoch, record.revision});
    return;
  }
  if (!copy) return;
  operation.image = record.image->id;
  Pending pending{Pending::What::pull, record.spec.name, copy->to, {}, record.image->id, record.epoch, record.revision};
  for (const PullCall::Member& member : copy->call.members) pending.copied.push_back(member.image);
  operation.call = call(std::move(copy->call), background_limit(record.spec), std::move(pending));
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
    // So does one of an image of which a share is nowhere any more; and no delta goes on from either.
    const bool share_lost = checkpoints_owner(record.spec) && result.error().code == Errc::not_found;
    if (!build && (result.error().code == Errc::corrupt || share_lost)) {
      workload.renew_image = true;
      workload.renew_delta = false;
    }
    emit(build ? "image-failed" : "image-copy-failed", workload, pending.host, {{"error", result.error().text()}});
    return;
  }
  operation.failures = 0;
  if (result->image) remember_effect(pending.host, Effect{result->sequence, std::nullopt, *result->image});
  remember_copied(workload, pending, *result);
  if (build) {
    const auto base = result->image ? result->image->base : std::nullopt;
    if (base && !record.has_image(*base)) {
      emit("image-failed", workload, pending.host, {{"error", fmt::format("{} is a delta of {}, which is not kept any more", pending.image, *base)}});
      return;
    }
    std::vector<ImageId> bases;
    if (base) bases = record.image->bases, bases.push_back(*base);
    if (checkpoints_owner(record.spec) && workload.image_acknowledged && record.image) record.acknowledged = record.image;
    record.image = ReadyImage{pending.image, pending.revision, std::move(bases), pending.instance};
    workload.renew_image = workload.renew_delta = false;
    workload.renew_bytes_per_second = 0;
    workload.image_acknowledged = false;
    workload.image_since = now;
    persist(workload);
  }
  std::map<std::string, std::string> fields{{"image", pending.image.str()}, {"bytes", result->image ? std::to_string(result->image->bytes) : "0"}};
  std::string detail = result->detail;
  if (build && !operation.why_whole.empty()) detail = fmt::format("all of it, because {}{}{}", operation.why_whole, detail.empty() ? "" : "; ", detail);
  if (!detail.empty()) fields["detail"] = detail;
  if (build && !record.image->bases.empty()) fields["base"] = record.image->bases.back().str();
  emit(build ? "image" : "image-copied", workload, pending.host, std::move(fields));
  actions_.push_back(PushRoutes{});
  reconcile(workload, now);
}

/// The newest image is on nobody who can be asked for it. False: there is none to go back to.
bool ControlCore::go_back(Workload& workload) {
  Record& record = workload.record;
  if (!record.acknowledged || record.acknowledged->revision != record.revision) return false;
  emit("image-given-up", workload, {}, {{"image", record.image ? record.image->id.str() : ""}, {"for", record.acknowledged->id.str()}});
  record.image = std::exchange(record.acknowledged, std::nullopt);
  workload.image_acknowledged = false;  // as far as it is known now
  persist(workload);
  actions_.push_back(PushRoutes{});
  return true;
}

void ControlCore::reconcile_standby(Workload& workload, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.standby;
  if (operation.call != 0 || now < operation.not_before) return;
  operation.not_before = Instant{};
  if (record.phase != OwnerPhase::up) return;  // asleep: the sleeper is its own standby

  const InstanceReport* standing = standby_of(workload);
  if (standing && record.standby_host != record.host && record.standby_revision == record.revision &&
      standing->state == InstanceState::frozen && standing->age < record.spec.policy.frozen_age &&
      (!record.image_current() || standing->image == record.image->id))
    return;

  std::vector<HostId> candidates = plan::standby_hosts(record.spec, views(workload), record.host);
  if (candidates.empty()) return;
  const HostId& host = candidates.front();
  // Where checkpoints work a standby is a restored image: wait for it. Elsewhere it is started, then frozen.
  const bool from_image = record.image_current() && holders(workload).contains(host);
  if (!from_image && takes_images(host, record.spec)) return;

  operation.instance = InstanceId(fmt::format("{}.{}", record.spec.name, ++record.serial));
  persist(workload);
  operation.call = call(PrepareCall{record.spec, operation.instance, record.epoch,
                                    from_image ? std::optional(record.image->id) : std::nullopt},
                        side_limit(record.spec),
                        Pending{Pending::What::prepare, record.spec.name, host, operation.instance,
                                from_image ? record.image->id : ImageId(), record.epoch, record.revision});
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

}  // namespace yado::control
