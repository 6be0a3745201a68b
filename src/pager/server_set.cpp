#include "pager/server_set.hpp"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <future>

#include "base/check.hpp"
#include "base/log.hpp"
#include "pager/parity.hpp"

namespace yado::pager {
namespace asio = boost::asio;

ServerSet::ServerSet(asio::any_io_executor network, RemoteMemory& memory, std::vector<Member> members, Connect connect)
    : network_(std::move(network)), memory_(memory), copies_(dynamic_cast<Copies*>(&memory)), parity_(dynamic_cast<Parity*>(&memory)), connect_(std::move(connect)), members_(std::move(members)) {
  on_network([&] {
    for (std::size_t i = 0; i < members_.size(); ++i)
      if (members_[i].link) watch(i);
    if (copies_)
      copies_->on_settled([this] {
        for (std::size_t i = 0; i < drains_.size(); ++i) drains_[i].second->go_on();
      });
  });
}

void ServerSet::start(Pager& pager, const std::vector<ServiceConfig::Server>& missing) {
  on_network([&] {
    pager_ = &pager;
    for (std::size_t i = 0; i < members_.size(); ++i)
      if (members_[i].told.leaving) drain(i, true);
  });
  for (const ServiceConfig::Server& one : missing) take_up_later(one);
}

void ServerSet::on_death(std::function<void()> action) {
  on_network([&] {
    on_death_ = std::move(action);
    if (std::ranges::any_of(members_, [](const Member& one) { return one.link && !one.link->alive(); })) tell_of_death();
  });
}

/// Behind the answers that a dead one's requests get.
void ServerSet::tell_of_death() {
  asio::post(network_, [this] {
    if (on_death_) on_death_();
  });
}

// ---- a change --------------------------------------------------------------------------------------------------------

bool ServerSet::same_place(const ServiceConfig::Server& one, const ServiceConfig::Server& other) {
  const auto where = [](const ServiceConfig::Server& server) { return std::tie(server.host, server.unix_path, server.address, server.port); };
  return where(one) == where(other);
}

std::optional<std::size_t> ServerSet::member_for(const ServiceConfig::Server& server) const {
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const Member& member = members_[i];
    if (member.link && member.link->alive() && !member.gone && same_place(member.told, server)) return i;
  }
  return std::nullopt;
}

/// Those that stay are not emptied any more from here on: their sessions must not end meanwhile.
Result<ServerSet::Plan> ServerSet::plan(const std::vector<ServiceConfig::Server>& wanted) {
  if (held_) return fail(Errc::conflict, "a checkpoint or a move of this memory is under way: its servers cannot change now");
  Plan plan;
  for (const ServiceConfig::Server& server : wanted)
    if (const auto number = member_for(server)) {
      plan.stay.push_back(*number);
      const std::uint64_t quota = members_[*number].told.quota_bytes;
      if (server.quota_bytes != quota) (server.quota_bytes > quota ? plan.want_more : plan.want_less).emplace_back(*number, server);
    } else {
      plan.missing.push_back(server);
    }
  static_assert(Copies::most_servers == Parity::most_hosts);
  const auto in_use = static_cast<std::size_t>(std::ranges::count_if(members_, [](const Member& member) { return !member.link || member.link->alive(); }));
  if (in_use + plan.missing.size() > Copies::most_servers)
    return fail(Errc::no_space, "{} servers hold this memory (an image on this host counts, and those that are being emptied), {} more are too many: at most {} can",
                in_use, plan.missing.size(), Copies::most_servers);
  const std::size_t then = plan.stay.size() + plan.missing.size();
  for (std::size_t i = 0; i < members_.size() && parity_ && then < parity_->least_hosts(); ++i)
    if (const Member& one = members_[i]; one.link && one.link->alive() && !one.gone && std::ranges::find(plan.stay, i) == plan.stay.end())
      return fail(Errc::unsupported, "this parity needs {} memory hosts: {} keeps its part", parity_->least_hosts(), one.told.host);
  for (const std::size_t number : plan.stay)
    if (keep(number)) plan.were_leaving.push_back(number);
  return plan;
}

/// All of them or none.
Result<std::vector<ServerSet::Member>> ServerSet::connect_all(const std::vector<ServiceConfig::Server>& missing) {
  std::vector<std::future<Result<Member>>> opening;
  for (const ServiceConfig::Server& one : missing)
    opening.push_back(std::async(std::launch::async, [this, &one] { return connect_(one); }));
  std::vector<Member> members;
  std::optional<Error> failed;
  for (std::size_t i = 0; i < opening.size(); ++i) {
    auto member = opening[i].get();
    if (member) members.push_back(std::move(*member));
    else failed = Error{member.error().code, fmt::format("memory on {}: {}", missing[i].host, member.error().message)};
  }
  if (!failed) return members;
  end_all(std::move(members));
  return std::unexpected(*failed);
}

void ServerSet::end_all(std::vector<Member> members) {
  asio::post(network_, [members = std::move(members)] {
    for (const Member& member : members)
      for (const auto& link : {member.link, member.parity})
        if (link) link->end([link](const Status&) { link->close(); });
  });
}

Result<std::vector<std::string>> ServerSet::change(const std::vector<ServiceConfig::Server>& wanted, const std::function<void()>& just_before) {
  const std::lock_guard one_at_a_time(change_mutex_);
  const auto wants = [&](const ServiceConfig::Server& one) { return std::ranges::any_of(wanted, [&](const auto& other) { return same_place(one, other); }); };
  std::vector<ServiceConfig::Server> lost;
  {
    std::unique_lock lock(mutex_);  // a session that is about to end, or to begin, is not taken up again
    something_ended_.wait(lock, [&] { return closing_ == 0 && !(taking_up_ && wants(*taking_up_)); });
    lost = std::exchange(lost_, {});
  }
  const auto as_before = [&] {
    note([&] {
      for (ServiceConfig::Server& one : lost)
        if (!is_lost(one)) lost_.push_back(std::move(one));
    });
    something_lost_.notify_all();
  };
  const auto planned = on_network([&] { return this->plan(wanted); });
  if (!planned) {
    as_before();
    return context(planned.error(), "servers");
  }
  const Plan& plan = *planned;
  auto connected = connect_all(plan.missing);
  for (const auto& [number, server] : plan.want_more)
    if (const Status more = connected ? set_quota(number, server.quota_bytes) : Status{}; !more) {
      end_all(*connected);
      connected = context(more.error(), "memory on " + server.host);
    }
  std::vector<std::string> notes;
  for (const auto& [number, server] : plan.want_less)
    if (const Status less = connected ? set_quota(number, server.quota_bytes) : Status{}; !less)
      notes.push_back(fmt::format("{} keeps its larger quota: {}", server.host, less.error().message));
  return on_network([&]() -> Result<std::vector<std::string>> {
    std::erase_if(drains_, [](const auto& drain) { return drain.second->at_rest(); });
    if (!connected) {
      as_before();
      for (const std::size_t number : plan.were_leaving) drain(number, false);
      return std::unexpected(connected.error());
    }
    note([&] {
      could_not_leave_.clear();
      std::erase_if(lost_, [&](const auto& one) { return !wants(one); });  // lost meanwhile
    });
    just_before();
    std::vector<std::size_t> leave;
    for (std::size_t i = 0; i < members_.size(); ++i) {
      const Member& member = members_[i];
      if (member.link && member.link->alive() && !member.leaving && !member.gone && std::ranges::count(plan.stay, i) == 0) leave.push_back(i);
    }
    for (Member& member : *connected) add(std::move(member));
    for (const std::size_t number : leave) drain(number, false);
    return notes;
  });
}

/// Asks the server and waits.
Status ServerSet::set_quota(std::size_t number, std::uint64_t bytes) {
  const auto answer = std::make_shared<std::promise<Status>>();
  auto answered = answer->get_future();
  asio::post(network_, [this, number, bytes, answer] {
    members_[number].link->set_quota(bytes / page_bytes, [this, number, bytes, answer](const Status& changed) {
      if (changed) members_[number].told.quota_bytes = bytes;
      answer->set_value(changed);
    });
  });
  return answered.get();
}

void ServerSet::add(Member added) {
  const auto number = memory_.add_server(added.link.get(), added.parity.get());
  YADO_CHECK(number.has_value(), "plan() counted them");
  if (*number == members_.size()) members_.emplace_back();
  Member& member = members_[*number];
  for (const auto& link : {member.link, member.parity})
    if (link) link->close();
  member = std::move(added);
  if (!member.link->alive() || (member.parity && !member.parity->alive())) return memory_.server_died(*number);  // died before anybody watched
  watch(*number);
}

void ServerSet::drain(std::size_t number, bool bring_first) {
  members_[number].leaving = true;
  note([&] { ++leaving_; });
  const auto done = [this, number](const Status& status) { drained(number, status); };
  if (parity_) return asio::post(network_, [this, number, done] { if (members_[number].leaving) parity_->leave(number, done); });
  const auto bring = [this](const std::vector<PageNumber>& pages) {
    std::vector<PageNumber> here;
    const std::size_t come = pager_->bring(pages, here);
    if (!here.empty()) memory_.kept(here);
    return come;
  };
  const auto ask_move = [this](const Copies::Moving& moving, PageServer::Done moved) { move(moving, std::move(moved)); };
  drains_.emplace_back(number, std::make_unique<Drain>(*copies_, number, Drain::Ways{ask_move, bring, bring_first}, done));
  asio::post(network_, [drain = drains_.back().second.get()] { drain->go_on(); });
}

/// Named again while it is being emptied: true.
bool ServerSet::keep(std::size_t number) {
  if (!members_[number].leaving) return false;
  if (parity_) parity_->stay(number);
  for (auto& [of, drain] : drains_)
    if (of == number) drain->cancel();
  members_[number].leaving = false;
  note([&] { --leaving_; });
  return true;
}

void ServerSet::move(const Copies::Moving& moving, PageServer::Done done) {
  const ServiceConfig::Server& to = members_[moving.to].told;
  const ServerAddress address{to.unix_path, to.address, to.port, to.expected_peer};
  members_[moving.from].link->move(runs_of(moving.pages), address, members_[moving.to].link->instance(), [done = std::move(done)](const Result<std::uint64_t>& moved) {
    done(moved ? Status{} : Status(std::unexpected(moved.error())));
  });
}

/// Nothing of ours is on it any more, and nothing that was asked of it is unanswered in front of END.
void ServerSet::drained(std::size_t number, const Status& status) {
  Member& member = members_[number];
  member.leaving = false;
  if (!status) {
    log::warn("pager: {} keeps pages: {}", member.told.host, status.error().message);
    return note([&] {
      could_not_leave_.push_back(fmt::format("{} keeps pages: {}", member.told.host, status.error().message));
      --leaving_;
    });
  }
  note([&] { ++closing_; });
  member.gone = true;
  const auto sessions = std::make_shared<int>(member.parity ? 2 : 1);
  for (const auto& link : {member.link, member.parity})
    if (link)
      link->end([this, link, sessions](const Status&) {
        link->close();
        if (--*sessions == 0) note([&] { --closing_, --leaving_; });
      });
}

void ServerSet::note(const std::function<void()>& change) {
  {
    const std::lock_guard lock(mutex_);
    change();
  }
  something_ended_.notify_all();
}

Status ServerSet::drained() {
  std::unique_lock lock(mutex_);
  something_ended_.wait(lock, [&] { return leaving_ == 0; });
  if (could_not_leave_.empty()) return {};
  return fail(Errc::no_space, "{}", fmt::join(could_not_leave_, "; "));
}

// ---- beside it -------------------------------------------------------------------------------------------------------

ServerSet::Unchanged::~Unchanged() {
  if (set_ != nullptr) set_->on_network([&] { set_->held_ = false; });
}

Result<ServerSet::Unchanged> ServerSet::hold_unchanged() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      something_ended_.wait(lock, [&] { return leaving_ == 0; });
    }
    const std::lock_guard no_change(change_mutex_);  // one may have been quicker
    auto held = on_network([&]() -> Result<std::optional<Unchanged>> {
      if (held_) return fail(Errc::conflict, "a checkpoint or a move of this memory is under way");
      if (std::ranges::any_of(members_, &Member::leaving)) return std::optional<Unchanged>();
      held_ = true;
      std::vector<SplitSave::Server> servers;
      for (const Member& member : members_) servers.push_back({member.link, member.told.host});
      return Unchanged(*this, std::move(servers));
    });
    if (!held) return std::unexpected(held.error());
    if (*held) return std::move(**held);
  }
}

void ServerSet::end_sessions() {
  stop_taking_up();
  std::vector<std::future<void>> answers;
  const auto members = on_network([&] { return members_; });
  for (const Member& member : members)
    for (const auto& link : {member.link, member.parity}) {
      if (!link) continue;
      const auto answered = std::make_shared<std::promise<void>>();
      answers.push_back(answered->get_future());
      asio::post(network_, [link, answered] { link->end([answered](const Status&) { answered->set_value(); }); });
    }
  for (auto& answer : answers) answer.wait();
}

}  // namespace yado::pager
