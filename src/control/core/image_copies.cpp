// Where the parts of an image are, and which of them goes where next, so that it can be raised from whichever one host dies. Of a VM with split memory an image is
// several: the main one, and a share of the pages from each host that kept some. A restore needs a host with the main one; of shares it has not, it asks who saved them.
//
//   saved:   h1 main   h2 its share   h3 its share
//   copied:  h4 has all of it: any of h1, h2, h3, h4 may die.
//            Where there is no h4, h2 gets all of it. Its own share would be lost with it: so h1 gets a copy of that one.
#include <algorithm>
#include <iterator>

#include "control/core/control_core.hpp"

namespace yado::control {

namespace {

/// A share is named <image>.<host>, by the host that saved it. Of any other name: nobody.
HostId saver_of(const ImageId& share, const ImageId& image) {
  const std::string prefix = image.str() + ".";
  return share.str().starts_with(prefix) ? HostId(share.str().substr(prefix.size())) : HostId();
}

/// The oldest first.
std::vector<ImageId> chain_of(const ReadyImage& image) {
  std::vector<ImageId> chain = image.bases;
  chain.push_back(image.id);
  return chain;
}

}  // namespace

bool ControlCore::has_sound(const Record& record, const HostId& host, const ImageId& image) const {
  const auto& all = hosts_.at(host).report.images;
  const auto held = std::ranges::find(all, image, &ImageReport::id);
  return held != all.end() && !stale(record, *held);
}

/// Who has the main image and those of its bases.
std::set<HostId> ControlCore::holders(const Workload& workload) const {
  const Record& record = workload.record;
  std::set<HostId> found;
  if (!record.image) return found;
  const std::vector<ImageId> chain = chain_of(*record.image);
  for (const auto& [id, host] : hosts_)
    if (alive(id) && std::ranges::all_of(chain, [&](const ImageId& image) { return has_sound(record, id, image); })) found.insert(id);
  return found;
}

std::vector<ControlCore::Share> ControlCore::shares_of(const ImageId& image) const {
  std::set<ImageId> names;
  for (const auto& [id, host] : hosts_)
    for (const ImageReport& held : host.report.images)
      if (held.id == image) names.insert(held.members.begin(), held.members.end());
  std::vector<Share> shares;
  for (const ImageId& name : names) shares.push_back({name, image, saver_of(name, image)});
  return shares;
}

/// Of the current image and its bases.
std::vector<ControlCore::Share> ControlCore::shares_of(const Workload& workload) const {
  std::vector<Share> shares;
  if (!checkpoints_owner(workload.record.spec) || !workload.record.image) return shares;
  for (const ImageId& image : chain_of(*workload.record.image)) std::ranges::move(shares_of(image), std::back_inserter(shares));
  return shares;
}

/// Whether a restore could ask for a share who saved it. What that host reported before the image was complete does not count against it.
bool ControlCore::can_be_asked(const Workload& workload, const Share& share) const {
  const auto host = hosts_.find(share.saver);
  if (host == hosts_.end() || !alive(share.saver) || host->second.report.memory.port == 0) return false;
  return has_sound(workload.record, share.saver, share.id) || host->second.detector.last_heard() <= workload.image_since;
}

/// Those of `shares` that `holder` could not have without `lost`. (With parity only those are asked who keep some of the memory: `from_image`.)
std::vector<ControlCore::Share> ControlCore::missing(const Workload& workload, std::vector<Share> shares, const HostId& holder, const HostId& lost) const {
  const Record& record = workload.record;
  std::erase_if(shares, [&](const Share& share) {
    if (has_sound(record, holder, share.id)) return true;
    const auto& over = record.spec.vm.split->over;
    const bool may_be_asked = record.spec.vm.split->redundancy != Redundancy::parity || std::ranges::find(over, share.saver, &MemoryHost::host) != over.end();
    return may_be_asked && share.saver != lost && can_be_asked(workload, share);
  });
  return shares;
}

/// A host whose death would cost the image: without it none of the others could raise it. An empty name: none can as it is.
std::optional<HostId> ControlCore::depends_on(const Workload& workload) const {
  const std::set<HostId> holding = holders(workload);
  const std::vector<Share> shares = shares_of(workload);
  std::set<HostId> needed = holding;
  needed.insert(HostId());
  for (const Share& share : shares) needed.insert(share.saver);
  const auto survives = [&](const HostId& lost) {
    return std::ranges::any_of(holding, [&](const HostId& holder) { return holder != lost && missing(workload, shares, holder, lost).empty(); });
  };
  const auto found = std::ranges::find_if_not(needed, survives);
  return found == needed.end() ? std::nullopt : std::optional(*found);
}

/// It is raised from whichever one host dies; with one copy asked for, as long as none does.
bool ControlCore::redundant(const Workload& workload) const {
  if (holders(workload).size() < settings_.image_copies) return false;
  const auto needed = depends_on(workload);
  return !needed || (settings_.image_copies < 2 && !needed->empty());
}

/// Where shares can be had: at whoever saved them, perhaps a moment ago, or has a copy.
std::vector<PullCall::Member> ControlCore::members_of(const Workload& workload, const ImageId& image) const {
  std::map<ImageId, Endpoint> found;
  for (const auto& [id, host] : hosts_)
    for (const ImageReport& held : host.report.images) {
      if (!alive(id) || held.member_of != image) continue;
      // Beside a main image that names no base any more a share that is still a delta is of no use.
      if (const auto [at, first] = found.emplace(held.id, host.report.agent); !first && held.merged) at->second = host.report.agent;
    }
  for (const Share& share : shares_of(image))
    if (can_be_asked(workload, share)) found.emplace(share.id, hosts_.at(share.saver).report.agent);
  std::vector<PullCall::Member> members;
  for (const auto& [id, from] : found) members.push_back({id, from});
  return members;
}

/// Of a delta its bases with their shares, then its own shares. `holder` has all that is no share.
std::vector<PullCall::Member> ControlCore::before_image(const Workload& workload, const Endpoint& holder) const {
  const Record& record = workload.record;
  std::vector<PullCall::Member> all;
  for (const ImageId& base : record.image->bases) {
    std::ranges::move(members_of(workload, base), std::back_inserter(all));
    all.push_back({base, holder});
  }
  std::ranges::move(members_of(workload, record.image->id), std::back_inserter(all));
  return all;
}

/// What is to be copied next; nothing when all is where it should be. The spec goes with it, as it would be raised there without control. `keepers` may have images, the best first; a host where a copy failed is not asked again
/// before the others were. `not_found`: a share is nowhere any more.
Result<std::optional<ControlCore::Copy>> ControlCore::copy_wanted(const Workload& workload, std::vector<HostId> keepers) const {
  const Record& record = workload.record;
  const std::set<HostId> holding = holders(workload);
  const std::size_t wanted = std::min(settings_.image_copies, keepers.size());
  const auto choose = [&](const std::vector<HostId>& hosts) { return hosts[static_cast<std::size_t>(workload.image.failures) % hosts.size()]; };
  const Endpoint& holder = hosts_.at(*holding.begin()).report.agent;
  const std::vector<Share> shares = shares_of(workload);
  if (holding.size() < wanted) {
    std::erase_if(keepers, [&](const HostId& host) { return holding.contains(host); });
    if (keepers.empty()) return std::nullopt;
    // Where the fewest parts have to be copied, those that it saved itself among them; then where it saved none.
    const std::vector<ImageId> chain = chain_of(*record.image);
    std::ranges::stable_sort(keepers, {}, [&](const HostId& host) {
      const auto saved = std::ranges::count(shares, host, &Share::saver);
      const auto to_copy = std::ranges::count_if(chain, [&](const ImageId& image) { return !has_sound(record, host, image); }) +
                           std::ranges::count_if(shares, [&](const Share& share) { return share.saver == host || !has_sound(record, host, share.id); });
      return std::pair(to_copy, saved);
    });
    const HostId to = choose(keepers);
    return Copy{to, {with_memory_hosts(record.spec, to, {}), record.epoch, record.image->id, holder, before_image(workload, holder), true}};
  }
  const auto lost = wanted < 2 ? std::nullopt : depends_on(workload);
  if (!lost) return std::nullopt;
  std::vector<HostId> others(holding.begin(), holding.end());
  std::erase(others, *lost);
  std::ranges::stable_sort(others, {}, [&](const HostId& other) { return missing(workload, shares, other, *lost).size(); });
  const HostId to = choose(others);
  Copy copy{to, {with_memory_hosts(record.spec, to, {}), record.epoch, record.image->id, holder, {}, true, true}};
  for (const Share& share : missing(workload, shares, to, *lost)) {
    const std::vector<PullCall::Member> all = members_of(workload, share.of);
    const auto from = std::ranges::find(all, share.id, &PullCall::Member::image);
    if (from == all.end()) return fail(Errc::not_found, "{} of image {} is on no host that answers", share.id, record.image->id);
    copy.call.members.push_back(*from);
  }
  return copy;
}

/// What was copied is there, although its host's reports do not say so yet.
void ControlCore::remember_copied(const Workload& workload, const Pending& pending, const CallReply& reply) {
  const Record& record = workload.record;
  const auto remember = [&](ImageReport image) {
    const auto& all = hosts_.at(pending.host).report.images;
    if (std::ranges::find(pending.copied, image.id) != pending.copied.end() && std::ranges::find(all, image.id, &ImageReport::id) == all.end())
      remember_effect(pending.host, Effect{reply.sequence, std::nullopt, std::move(image)});
  };
  if (!record.image) return;
  for (const ImageId& base : record.image->bases) remember({.id = base, .workload = record.spec.name});
  for (const Share& share : shares_of(workload)) remember({.id = share.id, .workload = record.spec.name, .member_of = share.of});
}

}  // namespace yado::control
