// A VM with split memory goes on on another host while it runs.
//
//   control                       from                                   to                      memory servers
//     │ resplit ───────────────────▶ │ over those who will keep it, and `to`: MOVE between servers, nothing through `from`
//     │ hand over, disks only ─────▶ │ what it has written to its disks so far (once or twice; not without disks)
//     │ pull ──────────────────────────────────────────────────────────────▶ │ (from `from`)
//     │ expect ────────────────────────────────────────────────────────────▶ │ QEMU, standing still beside a pager that waits to be told
//     │ hand over ─────────────────▶ │ pages, round by round ─────────────────────────────────────▶ │
//     │                              │ (has it written much to its disks meanwhile: not yet; once more from "disks only" on)
//     │                              │ [stands still] last pages ─────────────────────────────────▶ │
//     │ ◀───────── devices, disks ── │ frozen                               │                       │
//     │ pull ──────────────────────────────────────────────────────────────▶ │ (from `from`)         │
//     │ grant a new epoch, raise ──────────────────────────────────────────▶ │ inherit the sessions ▶│
//     │ ◀───────────────────────────────────────────────────────── it runs ─ │                       │
//
// What is expected goes by itself when the move comes to nothing: the other host keeps it as long as control, asked by its reports, names it.
// Until the sessions are inherited `from` can go on: every failure before ends in a raise there, by thawing what stands
// frozen. Nothing of this is in the store: the record names an owner at all times, and what stands frozen is in reports.
#include "control/core/control_core.hpp"

#include <algorithm>

#include "control/core/pacing.hpp"

namespace yado::control {
namespace {

constexpr double pause_of_disks = 0.05;              // seconds that a guest may stand still for its disks' sake
constexpr std::uint64_t little_disk_bytes = 4 << 20;  // goes beside its devices

/// With fewer hosts it is held twice instead.
bool has_parity(const std::optional<Split>& split) {
  constexpr std::size_t least_hosts = 3;
  return split && split->redundancy == Redundancy::parity && split->over.size() >= least_hosts;
}

}  // namespace

/// That goes from host to host while it stands still.
std::uint64_t ControlCore::Migration::most_disk_bytes() const {
  return std::max(little_disk_bytes, static_cast<std::uint64_t>(bytes_per_second * pause_of_disks));
}

void ControlCore::move_live(AskId ask, const WorkloadId& id, const std::optional<HostId>& wish, std::optional<Split> split, Instant now) {
  const auto refuse = [&](Errc code, std::string why) { answer(ask, std::unexpected(Error{code, std::move(why)}), false); };
  Workload* workload = find(id);
  if (!workload) return refuse(Errc::not_found, fmt::format("no workload is named \"{}\"", id));
  const Record& record = workload->record;
  if (!checkpoints_owner(record.spec)) return refuse(Errc::conflict, fmt::format("{} is no VM with split memory", id));
  if (record.stopped) return refuse(Errc::conflict, fmt::format("{} is stopped", id));
  if (workload->owner || record.phase != OwnerPhase::up) return refuse(Errc::conflict, fmt::format("{} is being raised", id));
  if (workload->resplit) return refuse(Errc::conflict, fmt::format("the memory of {} is being moved to other hosts", id));
  if (workload->migration) return refuse(Errc::conflict, fmt::format("{} is being moved to {} already", id, workload->migration->to));
  const std::vector<HostId> ranking = plan::rank(record.spec, views(*workload), {record.host});
  if (!wish && ranking.empty()) return refuse(Errc::unavailable, fmt::format("no other host could run {}", id));
  const HostId to = wish.value_or(ranking.empty() ? HostId() : ranking.front());
  if (to == record.host) return refuse(Errc::conflict, fmt::format("{} runs on {} already", id, to));
  if (!alive(to)) return refuse(Errc::unavailable, fmt::format("host {} does not answer", to));
  if (!alive(record.host)) return refuse(Errc::unavailable, fmt::format("host {}, where {} runs, does not answer", record.host, id));
  Migration migration{.ask = ask, .from = record.host, .to = to, .left = record.instance, .left_epoch = record.epoch, .spec = record.spec};
  if (split) migration.spec.vm.split = std::move(split);
  workload->migration = std::move(migration);
  emit("move", *workload, record.host, {{"to", to.str()}});
  continue_migration(*workload, now);
}

/// Not beside a checkpoint or another change of its hosts, which its pager would refuse. First its memory is spread over the hosts that
/// will keep it, and its next main host, so that nothing has to go through the present one a second time.
void ControlCore::continue_migration(Workload& workload, Instant now) {
  Record& record = workload.record;
  Migration& migration = *workload.migration;
  if (migration.step != Migration::Step::wait || workload.image.call != 0 || workload.memory.call != 0) return;
  migration.step = Migration::Step::spread;
  if (record.owner_counts_from_image()) migration.goes_on_from = record.image->id;
  migration.image = ImageId(fmt::format("{}-move.{}", record.spec.name, ++record.serial));
  persist(workload);  // a name is never given twice
  const bool parity = has_parity(migration.spec.vm.split);
  migration.spec = with_memory_hosts(migration.spec, migration.to, {});
  WorkloadSpec meanwhile = migration.spec;
  if (!parity) {  // else all of it goes to where it belongs: no server has pages of others
    const Endpoint& landing = hosts_.at(migration.to).report.memory;
    if (landing.port == 0 || !meanwhile.vm.split)
      return stay(workload, {.workload = record.spec.name, .host = migration.from}, Error{Errc::unavailable, fmt::format("host {} takes no memory from others", migration.to)}, now);
    meanwhile.vm.split->over.push_back({.host = migration.to, .address = landing.address, .port = landing.port});
  }
  meanwhile.vm.split->local_bytes = record.spec.vm.split->local_bytes;
  call(ResplitCall{std::move(meanwhile), record.instance, record.epoch}, resplit_limit(record.spec),
       Pending{Pending::What::spread, record.spec.name, migration.from, record.instance, migration.image, record.epoch, record.revision});
}

void ControlCore::spread(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  if (!workload.migration || workload.migration->image != pending.image) return;
  if (!result) return stay(workload, pending, result.error(), now);
  if (workload.migration->spec.vm.disks.empty()) return expect(workload);
  seal(workload);
}

/// What it has written to its disks so far goes to the next host while it runs.
void ControlCore::seal(Workload& workload) {
  Record& record = workload.record;
  Migration& migration = *workload.migration;
  migration.step = Migration::Step::seal;
  const ImageId image(fmt::format("{}-move.{}", record.spec.name, ++record.serial));
  persist(workload);
  call(HandoverCall{.spec = migration.spec, .instance = record.instance, .epoch = record.epoch, .image = image, .to = migration.to,
                    .disks_only = true, .ahead = migration.ahead},
       side_limit(record.spec), Pending{Pending::What::seal, record.spec.name, migration.from, record.instance, image, record.epoch, record.revision});
  migration.ahead.push_back(image);
}

void ControlCore::sealed(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  Record& record = workload.record;
  if (!workload.migration || workload.migration->ahead.empty() || workload.migration->ahead.back() != pending.image) return;
  Migration& migration = *workload.migration;
  if (!result || !result->image) return stay(workload, pending, result ? Error{Errc::internal, "no disks were sealed"} : result.error(), now);
  remember_effect(pending.host, Effect{result->sequence, std::nullopt, *result->image});
  migration.ahead_bytes = result->image->bytes;
  migration.pulled_since = now;
  migration.step = Migration::Step::pull_ahead;
  call(PullCall{migration.spec, record.epoch, pending.image, hosts_.at(migration.from).report.agent, {}}, side_limit(record.spec),
       Pending{Pending::What::pull_ahead, record.spec.name, migration.to, {}, pending.image, record.epoch, record.revision});
}

/// What was written while much of it went follows, once: whatever is written later is written while the next host gets ready.
void ControlCore::ahead_pulled(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  if (!workload.migration || workload.migration->ahead.empty() || workload.migration->ahead.back() != pending.image) return;
  Migration& migration = *workload.migration;
  if (!result) return stay(workload, {.workload = pending.workload, .host = migration.from}, result.error(), now);
  if (result->image) remember_effect(pending.host, Effect{result->sequence, std::nullopt, *result->image});
  const nanoseconds took = std::max<nanoseconds>(now - migration.pulled_since, 1ms);
  migration.bytes_per_second = std::max(migration.bytes_per_second, static_cast<double>(migration.ahead_bytes) / (to_ms(took) / 1000));
  emit("disks-ahead", workload, pending.host, {{"image", pending.image.str()}, {"bytes", std::to_string(migration.ahead_bytes)}, {"took_us", std::to_string(took / 1us)}});
  if (migration.last_try) return hand_over(workload);
  const bool much = migration.ahead_bytes > migration.most_disk_bytes();
  if (much && migration.ahead.size() == 1) return seal(workload);
  expect(workload);
}

void ControlCore::expect(Workload& workload) {
  Record& record = workload.record;
  Migration& migration = *workload.migration;
  migration.step = Migration::Step::expect;
  migration.expected = InstanceId(fmt::format("{}.{}", record.spec.name, ++record.serial));
  persist(workload);
  call(ExpectCall{migration.spec, migration.expected, record.epoch, migration.ahead}, side_limit(record.spec),
       Pending{Pending::What::expect, record.spec.name, migration.to, migration.expected, migration.image, record.epoch, record.revision});
}

/// Who does not answer is not handed anything; who has nothing ready only takes longer.
void ControlCore::expected(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  Record& record = workload.record;
  if (!workload.migration || workload.migration->image != pending.image) return;
  Migration& migration = *workload.migration;
  if (!result) {
    if (result.error().code == Errc::unavailable || result.error().code == Errc::timed_out || !alive(migration.to))
      return stay(workload, {.workload = record.spec.name, .host = migration.from}, result.error(), now);
    emit("not-expected", workload, pending.host, {{"error", result.error().text()}});
    migration.expected = InstanceId();
  } else {
    emit("expected", workload, pending.host, {{"as", migration.expected.str()}});
  }
  hand_over(workload);
}

void ControlCore::hand_over(Workload& workload) {
  Record& record = workload.record;
  Migration& migration = *workload.migration;
  migration.step = Migration::Step::hand_over;
  const bool any = migration.ahead.empty() || migration.last_try;
  call(HandoverCall{.spec = migration.spec, .instance = record.instance, .epoch = record.epoch, .image = migration.image, .to = migration.to,
                    .ahead = migration.ahead, .most_disk_bytes = any ? 0 : migration.most_disk_bytes()},
       side_limit(record.spec), Pending{Pending::What::hand_over, record.spec.name, migration.from, record.instance, migration.image, record.epoch, record.revision});
}

/// It runs on where it is, and its memory goes back to where it was.
void ControlCore::stay(Workload& workload, const Pending& pending, const Error& why, Instant now) {
  emit("move-failed", workload, pending.host, {{"to", workload.migration->to.str()}, {"error", why.text()}});
  end_migration(workload, context(why, fmt::format("{} stays on {}", workload.record.spec.name, pending.host)).error());
  reconcile(workload, now);
}

void ControlCore::handed_over(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  Record& record = workload.record;
  if (!workload.migration || workload.migration->image != pending.image) return;
  Migration& migration = *workload.migration;
  if (!result) return stay(workload, pending, result.error(), now);
  if (!result->image) {
    emit("not-handed-over", workload, pending.host, {{"to", migration.to.str()}, {"detail", result->detail}});
    migration.last_try = true;
    return seal(workload);
  }
  emit("handed-over", workload, pending.host, {{"to", migration.to.str()}, {"detail", result->detail}});
  leases_.proved_dead(record.spec.name, pending.epoch);  // it stands frozen
  if (result->image) remember_effect(pending.host, Effect{result->sequence, std::nullopt, *result->image});
  remember_effect(pending.host, Effect{result->sequence, InstanceReport{.id = record.instance, .workload = record.spec.name, .epoch = record.epoch,
                                                                        .state = InstanceState::frozen, .endpoint = record.endpoint}, std::nullopt});
  migration.step = Migration::Step::pull;
  call(PullCall{migration.spec, record.epoch, migration.image, hosts_.at(migration.from).report.agent, {}}, side_limit(record.spec),
       Pending{Pending::What::pull_handover, record.spec.name, migration.to, {}, migration.image, record.epoch, record.revision});
}

void ControlCore::handover_pulled(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now) {
  if (!workload.migration || workload.migration->image != pending.image) return;
  Migration& migration = *workload.migration;
  if (result && result->image) remember_effect(pending.host, Effect{result->sequence, std::nullopt, *result->image});
  migration.step = Migration::Step::raise;
  if (!result) {
    emit("move-failed", workload, pending.host, {{"to", migration.to.str()}, {"error", result.error().text()}});
    answer(migration.ask, context(result.error(), fmt::format("{} stays on {}", workload.record.spec.name, migration.from)), false);
    migration.to = HostId();
    return begin_owner(workload, Evidence::asleep, {}, std::nullopt, now);  // where it stands
  }
  workload.waiting.push_back(migration.ask);
  begin_owner(workload, Evidence::requested, {}, migration.to, now);
}

/// In front of its raise. Whoever missed the guest meanwhile is told where it is.
void ControlCore::end_migration(Workload& workload, const Error& why) {
  const AskId ask = workload.migration->ask;
  workload.migration.reset();
  workload.record.memory_hosts.reset();  // its pager may have been told of others
  answer(ask, std::unexpected(why), false);
  if (!workload.owner) answer_all(workload, route_of(workload), false);
}

/// Until somebody else is up it is the only one who has everything. What an earlier move left behind is not.
bool ControlCore::stands_for_a_move(const Workload& workload, const InstanceReport& instance) const {
  if (!checkpoints_owner(workload.record.spec) || instance.state != InstanceState::frozen) return false;
  if (!workload.owner) return workload.restarted_in_raise;
  return !workload.owner->replaces || instance.epoch == *workload.owner->replaces;
}

/// What stands there has nothing any more: a raise on that host must not find it. Should the call be lost, the next report says the same.
void ControlCore::end_left(Workload& workload) {
  const Migration& migration = *workload.migration;
  const Record& record = workload.record;
  call(StopCall{record.spec.name, migration.left, record.epoch}, side_limit(record.spec),
       Pending{Pending::What::stop_owner, record.spec.name, migration.from, migration.left, {}, migration.left_epoch});
}

}  // namespace yado::control
