#include "pager/heritage.hpp"

#include <boost/asio/post.hpp>
#include <future>

#include "os/clock.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {

/// `ask` is called on the network's thread, for one after the other.
template <class Ask>
std::vector<Result<SessionStats>> ask_all(const asio::any_io_executor& network, const std::vector<std::shared_ptr<ServerLink>>& links, Ask ask) {
  std::vector<std::future<Result<SessionStats>>> answers;
  for (const auto& link : links) {
    const auto answer = std::make_shared<std::promise<Result<SessionStats>>>();
    answers.push_back(answer->get_future());
    asio::post(network, [link, answer, ask] { ask(*link, [answer](Result<SessionStats> stats) { answer->set_value(std::move(stats)); }); });
  }
  std::vector<Result<SessionStats>> all;
  for (auto& answer : answers) all.push_back(answer.get());
  return all;
}

}  // namespace

std::vector<Result<SessionStats>> stats_of(const asio::any_io_executor& network, const std::vector<std::shared_ptr<ServerLink>>& links) {
  return ask_all(network, links, [](ServerLink& link, ServerLink::Told<SessionStats> told) { link.stat(std::move(told)); });
}

std::vector<Result<SessionStats>> inherit(const asio::any_io_executor& network, const std::vector<std::shared_ptr<ServerLink>>& links, std::uint64_t epoch) {
  return ask_all(network, links, [epoch, life = life_now()](ServerLink& link, ServerLink::Told<SessionStats> told) { link.inherit(epoch, life, std::move(told)); });
}

void describe(ServiceConfig::Server& server, const ServerLink& link, std::uint64_t epoch, const SessionStats& stats) {
  server.instance = link.instance();
  server.epoch = epoch;
  server.held_pages = stats.data_pages + stats.zero_pages;
  server.puts = stats.puts;
}

/// A page can only come by a PUT or a MOVE, which both count, and only go by making them fewer.
Status is_as_left(const ServiceConfig::Server& server, const SessionStats& stats) {
  const std::uint64_t held = stats.data_pages + stats.zero_pages;
  if (held == server.held_pages && stats.puts == server.puts) return {};
  return fail(Errc::conflict, "memory on {}: {} pages were left there after {} PUTs, and now there are {} after {}: somebody goes on with it", server.host,
              server.held_pages, server.puts, held, stats.puts);
}

std::uint32_t life_now() { return static_cast<std::uint32_t>(os::now().time_since_epoch() / 125ms); }

}  // namespace yado::pager
