// The instances that never serve: builders, and the copies by which images prove themselves. And looks from outside.

#include <algorithm>

#include "agent/instances.hpp"
#include "os/cgroup.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::agent {

namespace asio = boost::asio;

asio::awaitable<Status> Instances::start_builder(BuildCall call) {
  InstanceRecord record{.id = call.instance, .workload = call.spec.name, .purpose = Purpose::builder};
  auto entered = enter(std::move(record), call.spec);
  if (!entered) co_return std::unexpected(entered.error());
  const LivePtr live = *entered;
  Status done = co_await bring_up(live);
  const std::optional<ImageSource> from_nothing;
  if (done) done = co_await begin(live, from_nothing, false);
  if (done) done = co_await settle(live);
  live->launch_over.give(true);
  if (done) co_return Status{};
  Error why = co_await with_log(live, done.error());
  co_return std::unexpected(std::move(why));
}

asio::awaitable<Result<workload::Properties>> Instances::checkpoint(InstanceId id, workload::PartDirectories parts) {
  const auto there = link(id);
  if (!there) co_return fail(Errc::not_found, "{} is not here", id);
  co_return co_await there->checkpoint(Epoch(), std::move(parts), workload::NewImage(), false);
}

asio::awaitable<Result<workload::Properties>> Instances::checkpoint_running(InstanceId id, workload::PartDirectories parts, workload::NewImage image) {
  const auto found = live_.find(id);
  if (found == live_.end() || !found->second->link) co_return fail(Errc::not_found, "{} is not here", id);
  const auto there = found->second->link;
  const Epoch epoch = found->second->record.epoch;
  co_return co_await there->checkpoint(epoch, std::move(parts), std::move(image), true);
}

asio::awaitable<Result<workload::Properties>> Instances::hand_over(InstanceId id, workload::PartDirectories parts, workload::Handover how) {
  const auto found = live_.find(id);
  if (found == live_.end() || !found->second->link) co_return fail(Errc::not_found, "{} is not here", id);
  const auto there = found->second->link;
  const Epoch epoch = found->second->record.epoch;
  co_return co_await there->hand_over(epoch, std::move(parts), std::move(how));
}

asio::awaitable<Result<std::string>> Instances::resplit(InstanceId id, WorkloadSpec spec) {
  const auto found = live_.find(id);
  if (found == live_.end() || !found->second->link) co_return fail(Errc::not_found, "{} is not here", id);
  const LivePtr live = found->second;
  const auto there = live->link;
  const Epoch epoch = live->record.epoch;
  const Split split = *spec.vm.split;
  auto said = co_await there->resplit(epoch, split);
  if (said) live->spec = std::move(spec);
  co_return said;
}

asio::awaitable<Status> Instances::prove(InstanceId id, WorkloadSpec spec, ImageSource source) {
  // A builder too: nobody is told of it, and the next agent process clears it away.
  InstanceRecord record{.id = id, .workload = spec.name, .purpose = Purpose::builder};
  auto entered = enter(std::move(record), std::move(spec));
  if (!entered) co_return std::unexpected(entered.error());
  const LivePtr live = *entered;
  Status done = co_await bring_up(live);
  const std::optional<ImageSource> from = std::move(source);
  if (done) done = co_await begin(live, from, false);
  if (done) done = co_await run_readiness(live, false);
  live->launch_over.give(true);
  Error why;
  if (!done) why = co_await with_log(live, done.error());
  co_await kill(id);
  if (!done) co_return std::unexpected(std::move(why));
  co_return Status{};
}

asio::awaitable<InstanceState> Instances::inspect(InstanceId id) {
  const auto there = link(id);
  if (!there) co_return InstanceState::exited;
  const auto described = co_await there->describe();
  if (!described) co_return InstanceState::exited;
  if (described->state != InstanceState::running) co_return described->state;
  // Somebody else's freezer or SIGSTOP: the supervisor does not know of it.
  std::function<bool()> stands = [group_name = cgroup_of(id)] {
    const auto group = os::Cgroup::open(group_name);
    if (!group) return false;
    if (group->frozen().value_or(false)) return true;
    const auto processes = group->processes();
    return processes && !processes->empty() && std::ranges::all_of(*processes, [](pid_t process) {
             const std::string stat = os::read_text(fmt::format("/proc/{}/stat", process)).value_or("");
             const std::size_t at = stat.rfind(") ");
             return at != std::string::npos && (stat[at + 2] == 'T' || stat[at + 2] == 't');
           });
  };
  const bool frozen = co_await around_.workers.run(std::move(stands));
  co_return frozen ? InstanceState::frozen : InstanceState::running;
}

}  // namespace yado::agent
