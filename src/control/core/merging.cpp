// Chains of images are kept short: whoever holds a share of a delta makes it need its bases no more, one host after the other, in the background.
//
//   shares of M5 on     h1      h2      h4 (copies)
//                       delta   delta   delta     MergeCall to each in turn
//                       merged  merged  merged    M4 … M1 are still named: others may read them. Each is asked once more, and
//                       alone   alone   alone     learns that nobody does: then the record names no bases, and they are dropped
#include <algorithm>

#include "control/core/control_core.hpp"
#include "control/core/pacing.hpp"

namespace yado::control {

namespace {
bool share_of(const ImageReport& held, const ImageId& image) { return held.id == image || held.member_of == image; }
ImageId saved_by(const HostId& host, const ImageId& image) { return ImageId(image.str() + "." + host.str()); }
}  // namespace

/// True when all of it is on hosts that answer, every share on the one that saved it, if that answers, and none that is silent has anything of it: that would
/// be left behind, and of no use. False, too, until a host has said what came of the last call.
bool ControlCore::shares_known(const Workload& workload, const ImageId& image) const {
  if (const auto& [host, sequence] = workload.merge_heard; alive(host) && hosts_.at(host).report.sequence <= sequence) return false;
  std::set<ImageId> wanted, there;
  for (const auto& [id, host] : hosts_)
    for (const ImageReport& held : host.report.images) {
      if (!share_of(held, image)) continue;
      if (!alive(id)) return false;
      there.insert(held.id);
      wanted.insert(held.members.begin(), held.members.end());
    }
  for (const auto& [id, host] : hosts_) {
    const ImageId share = saved_by(id, image);
    if (alive(id) && wanted.contains(share) && std::ranges::find(host.report.images, share, &ImageReport::id) == host.report.images.end()) return false;
  }
  return there.contains(image) && std::ranges::includes(there, wanted);
}

/// The first host with a share that is not `done`.
std::optional<HostId> ControlCore::host_with_share(const ImageId& image, bool (*done)(const ImageReport&)) const {
  for (const auto& [id, host] : hosts_)
    if (alive(id) && std::ranges::any_of(host.report.images, [&](const ImageReport& held) { return share_of(held, image) && !done(held); })) return id;
  return std::nullopt;
}

/// Of `image`, with its bases if they are wanted, and of their shares what `host` does not have, and who does: of a share first the host that saved it, which is asked for it in
/// a restore, too. Nothing when something is nowhere.
std::optional<std::vector<PullCall::Member>> ControlCore::elsewhere(const Workload& workload, const ImageId& image, const HostId& host, bool bases) const {
  const std::vector<ImageId>& all_bases = workload.record.image->bases;
  std::vector<ImageId> chain;
  if (bases) chain.assign(all_bases.begin(), std::ranges::find(all_bases, image));
  chain.push_back(image);
  std::vector<PullCall::Member> all;
  for (const ImageId& each : chain) {
    std::map<ImageId, Endpoint> found;
    std::set<ImageId> here, wanted{each};
    for (const auto& [id, other] : hosts_) {
      if (!alive(id)) continue;
      for (const ImageReport& held : other.report.images) {
        if (!share_of(held, each)) continue;
        wanted.insert(held.members.begin(), held.members.end());
        if (id == host) here.insert(held.id);
        if (held.id == saved_by(id, each)) found[held.id] = other.report.agent;
        else found.emplace(held.id, other.report.agent);
      }
    }
    for (const ImageId& part : wanted) {
      if (here.contains(part)) continue;
      const auto from = found.find(part);
      if (from == found.end()) return std::nullopt;
      all.push_back({part, from->second});
    }
  }
  return all;
}

/// Bases of what needs none any more are not named any more: their hosts' next reports drop them.
void ControlCore::shorten_chain(Workload& workload) {
  Record& record = workload.record;
  const auto alone = [](const ImageReport& held) { return !held.base; };
  ReadyImage& image = *record.image;
  std::vector<ImageId> chain = image.bases;
  chain.push_back(image.id);
  for (auto newest = chain.rbegin(); newest != std::prev(chain.rend()); ++newest) {
    if (!shares_known(workload, *newest) || host_with_share(*newest, alone)) continue;
    const auto count = static_cast<std::size_t>(std::distance(newest, chain.rend())) - 1;
    image.bases.erase(image.bases.begin(), image.bases.begin() + static_cast<std::ptrdiff_t>(count));
    workload.merge.failures = 0;
    workload.merge.image = ImageId();
    persist(workload);
    emit("image-merged", workload, {}, {{"image", newest->str()}, {"bases", std::to_string(count)}});
    return;
  }
}

void ControlCore::reconcile_chain(Workload& workload, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.merge;
  if (operation.call != 0 || now < operation.not_before) return;
  operation.not_before = Instant{};
  if (!record.image_current() || record.image->bases.empty()) return;
  // What is being built, copied or raised needs the images as they are, and so does who was raised from one: its pages are read when they are touched.
  const bool quiet = record.phase == OwnerPhase::up && workload.image.call == 0 && workload.memory.call == 0 && !workload.renew_image;
  if (!quiet || record.image->of != record.instance || record.image->origin || clone_of(record.spec.name)) return;
  if (!workload.image_acknowledged || holders(workload).size() < settings_.image_copies) return;
  shorten_chain(workload);
  if (record.image->bases.size() + 1 <= settings_.merge_images) {
    operation.image = ImageId();
    return;
  }
  // What was begun is gone on with, also when there is a newer delta by now.
  if (!record.image->is_or_needs(operation.image)) operation.image = record.image->id;
  if (!shares_known(workload, operation.image)) return;
  auto host = host_with_share(operation.image, [](const ImageReport& held) { return held.merged || !held.base; });
  const bool bases = host.has_value();  // whoever only has to hear that all are merged reads none
  if (!host) host = host_with_share(operation.image, [](const ImageReport& held) { return !held.base; });
  if (!host) return;
  auto others = elsewhere(workload, operation.image, *host, bases);
  if (!others) return;
  operation.call = call(MergeCall{record.spec.name, record.epoch, operation.image, std::move(*others)}, background_limit(record.spec),
                        Pending{Pending::What::merge, record.spec.name, *host, {}, operation.image, record.epoch, record.revision});
}

void ControlCore::merge_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  SideOperation& operation = workload.merge;
  operation.call = 0;
  workload.merge_heard = {pending.host, result ? result->sequence : 0};
  if (!result) {
    operation.not_before = now + pause_after(operation.failures++);
    emit("image-merge-failed", workload, pending.host, {{"image", pending.image.str()}, {"error", result.error().text()}});
  }
  reconcile(workload, now);
}

}  // namespace yado::control
