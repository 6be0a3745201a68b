#pragma once
// The answer to one request on a Connection: its framing, and what happens when a handler leaves it unfinished.

#include <cstdint>
#include <functional>
#include <string_view>

#include "wire/connection.hpp"

namespace yado::wire {

class ConnectionResponder : public Responder {
 public:
  explicit ConnectionResponder(Connection& connection) : connection_(connection) {}

  boost::asio::awaitable<Status> respond(Response response) override;
  boost::asio::awaitable<Status> start(int status, Headers headers) override;
  boost::asio::awaitable<Status> write(std::string_view data) override;
  bool closed() const override;
  void abort() override;
  void on_closed(std::function<void()> action) override;

  /// After the handler returned: what is still missing. `failed`: it threw.
  boost::asio::awaitable<void> finish(bool failed);

 private:
  enum class State { none, counted, chunked, until_close, done };
  bool streaming() const;

  Connection& connection_;
  State state_ = State::none;
  std::uint64_t left_ = 0;  // of the announced length
  bool silent_ = false;     // the answer to HEAD
};

}  // namespace yado::wire
