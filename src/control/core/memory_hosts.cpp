// Who keeps the memory of a VM that is split: for its next raise, and while it runs.
#include <algorithm>
#include <ranges>

#include "control/core/control_core.hpp"
#include "control/core/pacing.hpp"

namespace yado::control {
namespace {

/// A memory server that was started anew is another one: it listens elsewhere, and has nothing.
bool has(const std::vector<MemoryHost>& all, const MemoryHost& one) {
  return std::ranges::any_of(all, [&](const MemoryHost& other) { return one.reached_alike(other); });
}

std::string names_of(const std::vector<MemoryHost>& hosts) {
  std::string names;
  for (const MemoryHost& one : hosts) names += (names.empty() ? "" : ", ") + one.host.str();
  return names;
}

/// Whoever keeps some of it already goes on, as far as it is there: to replace a lost one moves nothing else.
WorkloadSpec in_use(const Record& record) {
  WorkloadSpec spec = record.spec;
  if (!record.memory_hosts) return spec;
  std::vector<MemoryHost> over = *record.memory_hosts;
  for (const MemoryHost& one : spec.vm.split->over)
    if (over.size() < spec.vm.split->over.size() && std::ranges::find(over, one.host, &MemoryHost::host) == over.end()) over.push_back(one);
  spec.vm.split->over = std::move(over);
  return spec;
}

}  // namespace

/// The hosts that are to keep some of its memory, as they can be reached now. One that cannot is replaced by another: the one with the most free memory.
WorkloadSpec ControlCore::with_memory_hosts(WorkloadSpec spec, const HostId& main, const HostId& suspect) const {
  if (!spec.vm.split) return spec;
  std::vector<MemoryHost>& over = spec.vm.split->over;
  const auto usable = [&](const HostId& id) {
    return id != main && id != suspect && hosts_.contains(id) && alive(id) && hosts_.at(id).report.memory.port != 0;
  };
  const auto best_spare = [&] {
    const HostId* best = nullptr;
    for (const auto& [id, host] : hosts_) {
      if (!usable(id) || std::ranges::find(over, id, &MemoryHost::host) != over.end()) continue;
      if (!best || host.report.memory_free_bytes > hosts_.at(*best).report.memory_free_bytes) best = &id;
    }
    return best;
  };
  for (MemoryHost& one : over) {
    if (usable(one.host)) continue;
    if (const HostId* spare = best_spare()) one.host = *spare;  // it keeps as much
  }
  std::erase_if(over, [&](const MemoryHost& one) { return !usable(one.host); });
  for (MemoryHost& one : over) {
    const Endpoint& memory = hosts_.at(one.host).report.memory;
    one.address = memory.address;
    one.port = memory.port;
  }
  return spec;
}

/// `spec` for a raise from the current image on `main`: with its memory hosts, and those who saved a share of it that `main` has not, and are only asked for that. An error says what cannot be had.
Result<WorkloadSpec> ControlCore::from_image(const Workload& workload, WorkloadSpec spec, const HostId& main, const HostId& suspect) const {
  const Record& record = workload.record;
  if (!record.image_current()) return fail(Errc::not_found, "there is no image of it as it is to be");
  if (!holders(workload).contains(main)) return fail(Errc::not_found, "{} is not on {}", record.image->id, main);
  if (!spec.vm.split) return spec;
  spec = with_memory_hosts(std::move(spec), main, suspect);
  std::vector<MemoryHost>& over = spec.vm.split->over;
  const auto keeps = over.size();
  std::set<HostId> unsized;
  for (const Share& share : shares_of(workload)) {
    const auto& [id, image, saver] = share;
    if (has_sound(record, main, id)) continue;
    if (saver == main && can_be_asked(workload, share)) continue;  // it has only not said so yet
    if (saver == suspect || !can_be_asked(workload, share) || hosts_.at(saver).voice != Voice::heard) return fail(Errc::unavailable, "{} is not on {}, and {}, which saved it, cannot be asked for it", id, main, saver);
    auto known = std::ranges::find(over, saver, &MemoryHost::host);
    if (known != over.end() && !known->leaving) continue;
    // Groups of a parity are of those that keep it from the beginning.
    if (spec.vm.split->redundancy == Redundancy::parity)
      return fail(Errc::unsupported, "{} is not on {}, but on {}, which is to keep nothing of the memory from then on: with parity it cannot be asked for it", id, main, saver);
    const HostReport& report = hosts_.at(saver).report;
    if (known == over.end()) known = over.insert(over.end(), {.host = saver, .address = report.memory.address, .port = report.memory.port, .bytes = 0, .leaving = true});
    // A first guess, without duplicates: LOAD makes the room that its pages take. What was saved just now its next report will say: until then an even share.
    const auto saved = std::ranges::find(report.images, id, &ImageReport::id);
    if (saved != report.images.end()) known->bytes += saved->bytes;
    else unsized.insert(saver);
  }
  for (MemoryHost& one : over | std::views::drop(keeps))
    if (unsized.contains(one.host)) one.bytes = 0;
  return spec;
}

Status ControlCore::check_restore(const Workload& workload, const WorkloadSpec& wanted, const HostId& host) const {
  if (const auto can = from_image(workload, wanted, host, {}); !can) return std::unexpected(can.error());
  if (hosts_.at(host).voice != Voice::heard) return fail(Errc::unavailable, "it does not answer just now");
  const std::vector<HostId> ranking = plan::rank(wanted, views(workload), {});
  if (std::ranges::find(ranking, host) == ranking.end()) return fail(Errc::unavailable, "it may not run there, or there is too little memory free");
  return {};
}

void ControlCore::restore(AskId ask, const WorkloadId& id, std::optional<HostId> host, std::optional<Split> split, Instant now) {
  Workload* workload = find(id);
  if (workload && checkpoints_owner(workload->record.spec) && !workload->record.stopped && !workload->owner) {  // else move() says no
    if (workload->resplit) return answer(ask, fail(Errc::conflict, "the memory of {} is being moved", id), false);
    WorkloadSpec wanted = workload->record.spec;
    if (split) wanted.vm.split = std::move(split);
    // Before what runs is ended: a cold start, or another host, is not what was asked for.
    if (host)
      if (const Status can = check_restore(*workload, wanted, *host); !can)
        return answer(ask, fail(can.error().code, "{} cannot be restored on {}: {}", id, *host, can.error().message), false);
    // What it is made of stays the same: images go on being of it.
    workload->record.spec = std::move(wanted);
    persist(*workload);
  }
  move(ask, id, std::move(host), now);
}

// ---- while it runs ---------------------------------------------------------------------------------------------------

Status ControlCore::check_resplit(const Workload& workload, const Split& split) const {
  const Record& record = workload.record;
  const WorkloadId& id = record.spec.name;
  if (!checkpoints_owner(record.spec)) return fail(Errc::conflict, "{} is no VM with split memory", id);
  if (record.phase != OwnerPhase::up || workload.owner) return fail(Errc::conflict, "{} does not run now: nothing of its memory is anywhere", id);
  if (!alive(record.host)) return fail(Errc::unavailable, "its host {} does not answer", record.host);
  if (workload.resplit) return fail(Errc::conflict, "the memory of {} is being moved already", id);
  if (workload.migration) return fail(Errc::conflict, "{} is being moved to {}", id, workload.migration->to);
  if (split.redundancy != record.spec.vm.split->redundancy)
    return fail(Errc::unsupported, "the redundancy of a memory cannot change while it is in use");
  for (const MemoryHost& one : split.over) {
    if (one.host == record.host) return fail(Errc::invalid_argument, "{} runs on {}: what lies there is `local`", id, one.host);
    const auto host = hosts_.find(one.host);
    if (host == hosts_.end() || !alive(one.host)) return fail(Errc::unavailable, "host {} does not answer", one.host);
    if (host->second.report.memory.port == 0) return fail(Errc::unavailable, "host {} keeps no memory for others", one.host);
  }
  return {};
}

void ControlCore::resplit(AskId ask, const WorkloadId& id, const Split& split, Instant now) {
  Workload* workload = find(id);
  if (!workload) return answer(ask, fail(Errc::not_found, "no workload is named \"{}\"", id), false);
  if (const Status may = check_resplit(*workload, split); !may) return answer(ask, std::unexpected(may.error()), false);
  Record& record = workload->record;
  workload->resplit = Workload::Resplit{ask, *record.spec.vm.split};
  record.spec.vm.split = split;
  record.memory_hosts.reset();
  persist(*workload);
  workload->memory.not_before = Instant{};
  reconcile(*workload, now);
}

/// Asked for by a person, not known since something failed, or, with copies on two hosts, one of which is lost: then another takes
/// its place, if there is any.
void ControlCore::reconcile_memory(Workload& workload, Instant now) {
  Record& record = workload.record;
  SideOperation& operation = workload.memory;
  if (!checkpoints_owner(record.spec) || record.phase != OwnerPhase::up || !alive(record.host)) return;
  // A checkpoint needs hosts that stay the same.
  if (operation.call != 0 || workload.image.call != 0 || now < operation.not_before) return;
  WorkloadSpec spec = with_memory_hosts(in_use(record), record.host, {});
  const std::vector<MemoryHost>& over = spec.vm.split->over;
  const bool all_there = over.size() == record.spec.vm.split->over.size();
  if (record.memory_hosts) {
    const auto lost = [&](const MemoryHost& one) { return !alive(one.host) || !one.reached_alike({one.host, hosts_.at(one.host).report.memory.address, hosts_.at(one.host).report.memory.port}); };
    const bool replaced = std::ranges::any_of(*record.memory_hosts, lost);
    if (spec.vm.split->redundancy == Redundancy::none || !replaced) return;
  }
  if (!all_there) return end_resplit(workload, fail(Errc::unavailable, "not all of its hosts answer any more: {} do", names_of(over)));
  operation.call = call(ResplitCall{std::move(spec), record.instance, record.epoch}, resplit_limit(record.spec),
                        Pending{Pending::What::resplit, record.spec.name, record.host, record.instance, {}, record.epoch, record.revision, over});
}

void ControlCore::resplit_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  Record& record = workload.record;
  if (pending.epoch != record.epoch || record.phase != OwnerPhase::up || workload.owner) return;  // of an owner that is over
  SideOperation& operation = workload.memory;
  operation.call = 0;
  if (!result) {
    operation.not_before = now + pause_after(operation.failures++);
    emit("memory-hosts-failed", workload, pending.host, {{"over", names_of(pending.memory_hosts)}, {"error", result.error().text()}});
    return end_resplit(workload, std::unexpected(result.error()));
  }
  operation.failures = 0;
  std::map<std::string, std::string> fields{{"over", names_of(pending.memory_hosts)}, {"local_bytes", std::to_string(record.spec.vm.split->local_bytes)}};
  if (!result->detail.empty()) fields["detail"] = result->detail;
  const bool was_known = record.memory_hosts.has_value();
  if (was_known) {
    std::vector<MemoryHost> gone = *record.memory_hosts;
    std::erase_if(gone, [&](const MemoryHost& one) { return has(pending.memory_hosts, one); });
    fields["lost"] = names_of(gone);
  }
  record.memory_hosts = pending.memory_hosts;
  persist(workload);
  emit(was_known ? "memory-host-replaced" : "memory-hosts", workload, pending.host, std::move(fields));
  end_resplit(workload, {});
  reconcile(workload, now);
}

/// After an error it is to be as before: that is asked for as soon as may be.
void ControlCore::end_resplit(Workload& workload, const Status& status) {
  if (!workload.resplit) return;
  const AskId ask = workload.resplit->ask;
  if (!status) {
    workload.record.spec.vm.split = workload.resplit->before;
    persist(workload);
  }
  workload.resplit.reset();
  answer(ask, status ? Result<Route>(route_of(workload)) : std::unexpected(status.error()), false);
}

}  // namespace yado::control
