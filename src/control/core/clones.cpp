// A second VM from the image of another one. No byte is copied for it: its record names the image of its origin, whose files are read, and never written, by whoever is raised from them.
//
//   bigvm     image bigvm-img.7 ◀─┐      the image stays as long as a record names it: also when bigvm takes a newer one, or is removed
//   bigvm2    image bigvm-img.7 ──┘      until its own first one, bigvm2-img.1, is acknowledged: a full one, as a chain is of one workload
#include <algorithm>

#include "control/core/control_core.hpp"

namespace yado::control {

bool ControlCore::needs_images_of(const Record& record, const WorkloadId& origin) {
  const auto of_it = [&](const std::optional<ReadyImage>& image) { return image && image->origin == origin; };
  return !record.removed && (of_it(record.image) || of_it(record.acknowledged));
}

/// One that has no image of its own yet.
std::optional<WorkloadId> ControlCore::clone_of(const WorkloadId& origin) const {
  const auto found = std::ranges::find_if(workloads_, [&](const auto& entry) { return needs_images_of(entry.second.record, origin); });
  return found == workloads_.end() ? std::nullopt : std::optional(found->first);
}

/// One of those who need the image sees to its copies: the origin, or, when that has gone on, the first of its clones.
bool ControlCore::copies_its_image(const Workload& workload) const {
  const Record& record = workload.record;
  if (!record.image->origin) return true;
  const auto needs_it = [&](const WorkloadId& id, const Record& other) { return !other.removed && !other.stopped && other.has_image(record.image->id) && (id == record.image->origin || needs_images_of(other, *record.image->origin)); };
  if (const auto origin = workloads_.find(*record.image->origin); origin != workloads_.end() && needs_it(origin->first, origin->second.record)) return false;
  return std::ranges::find_if(workloads_, [&](const auto& entry) { return needs_it(entry.first, entry.second.record); })->first == record.spec.name;
}

void ControlCore::clone(AskId ask, const WorkloadId& origin, WorkloadSpec spec, std::optional<HostId> host, Instant now) {
  const WorkloadId id = spec.name;
  const auto refuse = [&](Error error) { answer(ask, std::unexpected(std::move(error)), false); };
  const Workload* from = find(origin);
  if (!from) return refuse({Errc::not_found, fmt::format("no workload is named \"{}\"", origin)});
  const Record& source = from->record;
  if (!checkpoints_owner(source.spec)) return refuse({Errc::conflict, fmt::format("{} is no VM with split memory: only of those there are clones", origin)});
  if (!source.image_current()) return refuse({Errc::conflict, fmt::format("{} has no image of its current spec: see `yado checkpoint`", origin)});
  if (find(id)) return refuse({Errc::conflict, fmt::format("there is a workload named {} already", id)});
  for (const auto& [other, workload] : workloads_)
    for (const std::string& name : spec.service.hosts)
      if (const auto& taken = workload.record.spec.service.hosts; !workload.record.removed && std::ranges::find(taken, name) != taken.end())
        return refuse({Errc::conflict, fmt::format("the host name {} leads to {} already", name, other)});

  // A removed workload of this name goes on counting: epochs, names of instances and images, calls under way.
  const auto known = workloads_.find(id);
  Workload made = known == workloads_.end() ? Workload() : known->second;
  Record& record = made.record;
  record.removed = record.stopped = false;
  record.spec = std::move(spec);
  ++record.revision;
  record.image = source.image;
  record.image->revision = record.revision;
  if (!record.image->origin) record.image->origin = origin;
  made.image_acknowledged = from->image_acknowledged;
  made.image_since = from->image_since;

  const std::set<HostId> holding = holders(made);
  if (host && !holding.contains(*host)) {
    std::string names;
    for (const HostId& one : holding) names += (names.empty() ? "" : ", ") + one.str();
    return refuse({Errc::conflict, fmt::format("{} lies on {}, not on {}", record.image->id, names.empty() ? "no host that answers" : names, *host)});
  }
  Status can = fail(Errc::unavailable, "no host that answers has {}", record.image->id);
  for (const HostId& one : host ? std::set{*host} : holding) {
    can = check_restore(made, record.spec, one);
    if (can) break;
    can = fail(can.error().code, "{} cannot be restored on {}: {}", record.image->id, one, can.error().message);
  }
  if (!can) return refuse(std::move(can.error()));

  Workload& workload = workloads_[id] = std::move(made);
  emit("clone", workload, {}, {{"image", workload.record.image->id.str()}, {"origin", origin.str()}});
  workload.waiting.push_back(ask);
  begin_owner(workload, Evidence::requested, {}, std::move(host), now);
}

}  // namespace yado::control
