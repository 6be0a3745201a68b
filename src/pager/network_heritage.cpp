// Whose memory it is: taken over from the host before, left to the next one, or taken back (heritage.hpp).

#include <algorithm>

#include "pager/heritage.hpp"
#include "pager/network.hpp"

namespace yado::pager {
namespace {

/// In the order of the members, and behind them those for parity.
std::vector<std::shared_ptr<ServerLink>> links_of(const std::vector<ServerSet::Member>& members) {
  std::vector<std::shared_ptr<ServerLink>> links;
  for (const ServerSet::Member& one : members) links.push_back(one.link);
  for (const ServerSet::Member& one : members)
    if (one.parity) links.push_back(one.parity);
  return links;
}

/// Not `stale_epoch`: nobody was granted a later one than this.
std::unexpected<Error> owned_by_another(const Error& error) {
  if (error.code != Errc::stale_epoch) return std::unexpected(error);
  return fail(Errc::not_owner, "another main host has this memory, and its guest may have run: {}", error.message);
}

}  // namespace

Status Network::may_leave() {
  const bool all_live = run([&] { return parity_ == nullptr || parity_->all_hosts_live(); });
  if (all_live) return {};
  return fail(Errc::unavailable, "a memory host was lost, and what it had is only in the parity: it can move when another has taken its place");
}

Result<std::vector<ServiceConfig::Server>> Network::leave_to(const std::string& to) {
  const auto members = living();
  const auto stats = stats_of(executor(), links_of(members));
  std::vector<ServiceConfig::Server> servers;
  for (std::size_t i = 0; i < members.size(); ++i) {
    ServiceConfig::Server& server = servers.emplace_back(members[i].told);
    if (!stats[i]) return context(stats[i].error(), fmt::format("memory on {}", server.host));
    server.load.clear();
    server.leaving = server.host == to && !with_parity();
    describe(server, *members[i].link, epoch_, *stats[i]);
    if (!members[i].parity) continue;
    server.parity_instance = members[i].parity->instance();
    server.parity_columns = columns();
  }
  const std::lock_guard lock(own_mutex_);
  holding_ = Holding::left;
  return servers;
}

Result<bool> Network::own(std::uint64_t epoch, const Pager& pager) {
  const std::lock_guard lock(own_mutex_);
  const Holding before = holding_;
  if (before == Holding::owned || (before == Holding::left && epoch == epoch_)) return false;
  const Status done = before == Holding::read ? inherit_all(epoch) : take_back(epoch, pager.here());
  if (!done) return std::unexpected(done.error());
  epoch_ = epoch;
  holding_ = Holding::owned;
  if (before == Holding::read) take_in_loaded();
  return before == Holding::read;
}

std::vector<ServerSet::Member> Network::living() {
  return run([&] {
    std::vector<ServerSet::Member> members;
    for (const ServerSet::Member& one : servers_->members())
      if (one.link && !one.gone && one.link->alive()) members.push_back(one);
    return members;
  });
}

/// Whoever inherits one session keeps the host before from going on: so all of them must be there to be had, and as they were left.
Status Network::inherit_all(std::uint64_t epoch) {
  const auto is_heritage = [](const ServiceConfig::Server& one) { return one.instance != 0; };
  auto members = living();
  std::erase_if(members, [&](const ServerSet::Member& one) { return !is_heritage(one.told); });
  if (std::ssize(members) != std::ranges::count_if(config_.servers, is_heritage)) return fail(Errc::unavailable, "inherit: a memory server was lost meanwhile");
  const auto all_as_left = [&](const std::vector<Result<SessionStats>>& stats) -> Status {
    for (std::size_t i = 0; i < stats.size(); ++i) {
      if (!stats[i]) return owned_by_another(stats[i].error());
      if (i >= members.size()) continue;  // parity: whatever was there is of no use any more
      if (const Status same = is_as_left(members[i].told, *stats[i]); !same) return same;
    }
    return {};
  };
  YADO_TRY(all_as_left(stats_of(executor(), links_of(members))), "look first");
  return all_as_left(inherit(executor(), links_of(members), epoch));
}

/// Who has died meanwhile, or has ended the session, is done without.
Status Network::take_back(std::uint64_t epoch, const PageBits& here) {
  for (const auto& stats : inherit(executor(), links_of(living()), epoch))
    if (!stats && stats.error().code == Errc::stale_epoch) return owned_by_another(stats.error());
  return run([&] { return memory_->none_lost(here); });
}

}  // namespace yado::pager
