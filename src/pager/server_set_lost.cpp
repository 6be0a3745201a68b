// Members that fall silent or die although they are wanted.

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "pager/server_set.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {
/// Between two tries to take up a lost one: nobody says when a host is back.
constexpr nanoseconds first_wait = 1s, longest_wait = 30s;
}  // namespace

void ServerSet::watch(std::size_t number) {
  for (const auto& link : {members_[number].link, members_[number].parity}) {
    if (!link) continue;
    link->on_dead([this, number](const Error& why) {
      log::error("pager: {}", why.text());
      memory_.server_died(number);
      lost(number);
    });
    link->on_silent([this, number] { silent(number); });
  }
}

/// A prompt answer of another one that was never silent meanwhile proves that it is not we who hear nothing.
void ServerSet::silent(std::size_t number) {
  const std::vector suspects{members_[number].link, members_[number].parity};
  const auto find_suspect = [suspects] {
    const auto found = std::ranges::find_if(suspects, [](const auto& link) { return link && link->alive() && link->silent(); });
    return found == suspects.end() ? nullptr : *found;
  };
  const auto suspect = find_suspect();
  for (std::size_t i = 0; suspect && i < members_.size(); ++i) {
    const auto& other = members_[i].link;
    if (i == number || !other || !other->alive() || other->silent() || other->silent_until() >= suspect->silent_since()) continue;
    other->stat([this, number, find_suspect, in_time = os::now() + other->suspicious()](const Result<SessionStats>& answer) {
      if (!answer || os::now() >= in_time) return;
      if (const auto still = find_suspect(); still && memory_.can_do_without(number)) still->give_up({Errc::timed_out, "it does not answer, and is done without"});
    });
  }
}

void ServerSet::lost(std::size_t number) {
  const Member& member = members_[number];
  for (const auto& link : {member.link, member.parity})  // of two sessions the other one is of no use any more
    if (link) asio::post(network_, [link] { link->give_up({Errc::unavailable, "its other session is lost"}); });
  if (!member.leaving && !member.gone) take_up_later(member.told);
  tell_of_death();
}

void ServerSet::take_up_later(ServiceConfig::Server server) {
  server.load.clear();
  server.parts.clear();
  server.instance = server.parity_instance = 0;
  {
    const std::lock_guard lock(mutex_);
    if (ending_ || is_lost(server)) return;
    lost_.push_back(std::move(server));
    if (!taking_up_thread_.joinable()) taking_up_thread_ = std::jthread([this](const std::stop_token& stop) { take_up_lost(stop); });
  }
  something_lost_.notify_all();
}

bool ServerSet::is_lost(const ServiceConfig::Server& server) const {
  return std::ranges::any_of(lost_, [&](const auto& one) { return same_place(one, server); });
}

void ServerSet::take_up_lost(const std::stop_token& stop) {
  nanoseconds pause = first_wait;
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    if (!something_lost_.wait(lock, stop, [&] { return !lost_.empty(); })) return;
    something_lost_.wait_for(lock, stop, pause, [] { return false; });
    pause = std::min(2 * pause, longest_wait);
    for (const ServiceConfig::Server& server : std::vector(lost_)) {
      if (stop.stop_requested() || !is_lost(server)) continue;
      taking_up_ = server;
      lock.unlock();
      const bool taken_up = take_up(server);
      lock.lock();
      taking_up_.reset();
      something_ended_.notify_all();
      if (taken_up) pause = first_wait;
    }
  }
}

/// False: not now, or a change names others meanwhile, perhaps the same.
bool ServerSet::take_up(const ServiceConfig::Server& server) {
  if (on_network([&] { return held_; })) return false;
  auto member = connect_(server);
  if (!member) return false;
  if (const std::unique_lock no_change(change_mutex_, std::try_to_lock); no_change) {
    const bool added = on_network([&] {
      {
        const std::lock_guard lock(mutex_);
        if (held_ || !is_lost(server)) return false;
        std::erase_if(lost_, [&](const auto& one) { return same_place(one, server); });
      }
      add(std::move(*member));
      return true;
    });
    if (added) {
      log::info("pager: memory on {} answers again and is taken up, empty", server.host);
      return true;
    }
  }
  end_all({std::move(*member)});
  return false;
}

void ServerSet::stop_taking_up() {
  std::jthread thread;
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    thread.swap(taking_up_thread_);
    lost_.clear();
  }
  thread.request_stop();
}

}  // namespace yado::pager
