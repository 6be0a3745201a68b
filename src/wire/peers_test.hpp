#pragma once
// What the tests of this folder share: a scratch directory, an io_context with a time limit on the whole test, and
// peers that speak bytes instead of HTTP.

#include <gtest/gtest.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "wire/client.hpp"
#include "wire/run.hpp"
#include "wire/server.hpp"

namespace yado::wire {

/// Never reached unless something hangs.
constexpr nanoseconds patience = 20s;

class WireTest : public ::testing::Test {
 protected:
  WireTest();
  ~WireTest() override;

  template <class T>
  T run(boost::asio::awaitable<T> work) {
    return wire::run(io, std::move(work));
  }
  /// Runs what is ready until nothing is.
  void settle();

  Result<Response> call(Client& client, Request request) { return run(client.call(std::move(request), patience)); }
  std::string path(std::string_view name) const { return (directory / name).string(); }

  std::filesystem::path directory;
  boost::asio::io_context io;
};

Request get(std::string target);
Request post(std::string target, std::string body);

/// A connection of bytes.
class RawPeer {
 public:
  explicit RawPeer(boost::asio::local::stream_protocol::socket socket) : socket_(std::move(socket)) {}

  static boost::asio::awaitable<RawPeer> connect(boost::asio::io_context& io, std::string path);
  boost::asio::awaitable<void> send(std::string_view text);
  /// Reads until `ending` has come, or the end.
  boost::asio::awaitable<std::string> read_until(std::string_view ending);
  boost::asio::awaitable<std::string> read_all();
  void shutdown_send();

 private:
  boost::asio::local::stream_protocol::socket socket_;
  std::string left_;
};

/// A unix socket server whose answers are bytes. `script` gets each connection with its number, from 1 on.
class RawServer {
 public:
  using Script = std::function<boost::asio::awaitable<void>(RawPeer&, int)>;
  RawServer(boost::asio::io_context& io, const std::string& path, Script script);
  ~RawServer();
  int connections() const { return *count_; }

 private:
  std::shared_ptr<boost::asio::local::stream_protocol::acceptor> acceptor_;
  std::shared_ptr<int> count_ = std::make_shared<int>(0);
};

}  // namespace yado::wire
