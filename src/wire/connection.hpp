#pragma once
// One accepted connection of a Server: reads requests, runs the handler, writes answers, until one side ends it.
//
// While a handler runs, one read stays under way ("the watch"): that is how a peer's close is noticed at once. What it
// reads meanwhile is the beginning of the next (pipelined) request; with a full buffer the watch rests.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "wire/parser.hpp"
#include "wire/server.hpp"
#include "wire/stream.hpp"

namespace yado::wire {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  /// `from`: the peer's address, for log lines.
  Connection(Stream stream, std::string from, bool tls, Server::Limits limits,
             std::shared_ptr<const Server::Handler> handler);

  /// The life of the connection. `self` keeps it alive.
  static boost::asio::awaitable<void> serve(std::shared_ptr<Connection> self);
  /// Emitting it ends serve(), wherever it is suspended.
  boost::asio::cancellation_signal& cancellation() { return cancellation_; }
  void close();

 private:
  friend class ConnectionResponder;

  enum class Next { request, none };

  boost::asio::awaitable<bool> shake_hands();
  boost::asio::awaitable<Next> read_request();
  boost::asio::awaitable<bool> take_head();
  boost::asio::awaitable<void> answer();
  boost::asio::awaitable<void> refuse(int status, std::string why);
  boost::asio::awaitable<void> drain();
  boost::asio::awaitable<bool> fill();
  boost::asio::awaitable<Status> send(std::span<const boost::asio::const_buffer> parts);

  void start_read();
  void read_done(const boost::system::error_code& error, std::size_t bytes);
  void lost();
  std::string_view unread() const { return {input_.get() + begin_, end_ - begin_}; }

  Stream stream_;
  std::string from_;
  bool tls_;
  Server::Limits limits_;
  std::shared_ptr<const Server::Handler> handler_;
  boost::asio::cancellation_signal cancellation_;

  Parser parser_;
  Head head_;  // of the request being answered
  Request request_;
  std::string peer_;
  bool keep_alive_ = false;
  bool writing_ = false;

  std::unique_ptr<char[]> input_;
  std::size_t begin_ = 0, end_ = 0;
  bool reading_ = false;   // a read is under way
  bool watching_ = false;  // the handler runs: go on reading by yourself
  bool closed_ = false;    // the peer's end has come, or we closed: nothing more to read
  boost::asio::steady_timer read_event_;
  std::function<void()> on_closed_;
};

}  // namespace yado::wire
