#pragma once
// One connection of a memory server, on one worker's thread for its whole life.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "pager/background_pace.hpp"
#include "pager/channel.hpp"
#include "pager/session.hpp"
#include "wire/link.hpp"
#include "wire/tls.hpp"

namespace yado::pager {

class PageMove;
class ServerLink;

/// A thread with an io_context.
struct Worker {
  boost::asio::io_context io{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> busy = boost::asio::make_work_guard(io);
  std::thread thread;
};

/// What all connections of a server share. Outlives them.
struct ServerParts {
  Sessions& sessions;
  BlockPool& blocks;
  Worker& loader;  ///< reads images, for all sessions
  BackgroundPace& pace;  ///< of what is read from the disk although nobody waits for it yet
  const std::function<bool(std::string_view peer)>& admits;
  /// For MOVE: who this server is to another one. Null: only on this host.
  std::function<std::shared_ptr<const wire::Identity>()> identity;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(wire::Stream stream, Worker& worker, const ServerParts& parts);
  /// Until its end.
  static boost::asio::awaitable<void> serve(std::shared_ptr<Connection> self, bool tls);

 private:
  static boost::asio::awaitable<void> answer_requests(std::shared_ptr<Connection> self);
  static boost::asio::awaitable<void> wait_for_room_aside(std::shared_ptr<Connection> self);
  void refuse(std::uint64_t id, const Error& error);
  void break_off(const Error& error);
  void done(std::uint64_t id, std::vector<std::byte> body = {});

  Status welcome(const Frame& frame);
  bool may(Operation operation) const;
  Status answer(const Frame& frame);
  Status get(const Frame& frame);
  Status put(const Frame& frame);
  Status drop(const Frame& frame);
  Status list(const Frame& frame);
  Status quota(const Frame& frame);
  Status end(const Frame& frame);
  Status save(const Frame& frame);
  Status fix(const Frame& frame);
  Status finish(const Frame& frame);
  Status keep(const Frame& frame);
  Status abandon(const Frame& frame);
  Status load(const Frame& frame);
  struct MovedTo {
    std::string address, expected_peer;
    std::uint64_t instance;
    auto operator<=>(const MovedTo&) const = default;
  };
  Status move(const Frame& frame);
  std::shared_ptr<ServerLink> idle_link(const MovedTo& to);

  using Work = std::function<Result<std::vector<std::byte>>()>;
  Status archive(std::uint64_t id, const boost::asio::any_io_executor& where, Work work);
  void archived(std::uint64_t id, Result<std::vector<std::byte>> result);
  Status begin_saving(std::uint64_t id, SaveRequest request);
  PageStore::Owner owner() const { return {hello_.epoch, hello_.generation}; }
  PageStore::Owner reads_as() const;

  std::shared_ptr<wire::Stream> stream_;
  Worker& worker_;
  const ServerParts& parts_;
  wire::Deadline hello_deadline_;
  boost::asio::steady_timer room_aside_;
  std::shared_ptr<Channel> channel_;  ///< after the handshake
  std::string peer_ = "a peer before its handshake";
  Hello hello_;
  std::shared_ptr<Session> session_;  ///< after HELLO
  std::map<std::uint64_t, std::shared_ptr<PageMove>> moves_;  ///< by request; they end with the connection
  std::multimap<MovedTo, std::shared_ptr<ServerLink>> idle_;  ///< of moves that are done, for the next ones: making one takes longer than moving many pages
};

}  // namespace yado::pager
