#include "wire/peers_test.hpp"

#include <stdlib.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/check.hpp"

namespace yado::wire {
namespace asio = boost::asio;
using local = asio::local::stream_protocol;

WireTest::WireTest() {
  std::string pattern = (std::filesystem::temp_directory_path() / "yado-wire-XXXXXX").string();
  YADO_CHECK(::mkdtemp(pattern.data()) != nullptr, "no scratch directory");
  directory = pattern;
}

WireTest::~WireTest() {
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
}

void WireTest::settle() {
  io.restart();
  while (io.poll() > 0) {
  }
}

Request get(std::string target) {
  Request request;
  request.target = std::move(target);
  return request;
}

Request post(std::string target, std::string body) {
  Request request;
  request.method = "POST";
  request.target = std::move(target);
  request.body = std::move(body);
  return request;
}

asio::awaitable<RawPeer> RawPeer::connect(asio::io_context& io, std::string path) {
  local::socket socket(io);
  const local::endpoint endpoint(path);
  co_await socket.async_connect(endpoint, asio::use_awaitable);
  co_return RawPeer(std::move(socket));
}

asio::awaitable<void> RawPeer::send(std::string_view text) {
  co_await asio::async_write(socket_, asio::buffer(text), asio::as_tuple(asio::use_awaitable));
}

asio::awaitable<std::string> RawPeer::read_until(std::string_view ending) {
  for (;;) {
    if (const auto at = left_.find(ending); at != std::string::npos) {
      std::string got = left_.substr(0, at + ending.size());
      left_.erase(0, at + ending.size());
      co_return got;
    }
    char piece[16384];
    auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(piece), asio::as_tuple(asio::use_awaitable));
    left_.append(piece, bytes);
    if (error) co_return std::exchange(left_, {});
  }
}

asio::awaitable<std::string> RawPeer::read_all() {
  for (;;) {
    char piece[16384];
    auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(piece), asio::as_tuple(asio::use_awaitable));
    left_.append(piece, bytes);
    if (error) co_return std::exchange(left_, {});
  }
}

void RawPeer::shutdown_send() { socket_.shutdown(local::socket::shutdown_send); }

namespace {

asio::awaitable<void> converse(local::socket socket, int number, RawServer::Script script) {
  RawPeer peer(std::move(socket));
  co_await script(peer, number);
}

asio::awaitable<void> accept_all(std::shared_ptr<local::acceptor> acceptor, std::shared_ptr<int> count,
                                 RawServer::Script script) {
  for (;;) {
    local::socket socket(acceptor->get_executor());
    auto [error] = co_await acceptor->async_accept(socket, asio::as_tuple(asio::use_awaitable));
    if (error) co_return;
    asio::co_spawn(acceptor->get_executor(), converse(std::move(socket), ++*count, script), asio::detached);
  }
}

}  // namespace

RawServer::RawServer(asio::io_context& io, const std::string& path, Script script)
    : acceptor_(std::make_shared<local::acceptor>(io, local::endpoint(path))) {
  asio::co_spawn(io, accept_all(acceptor_, count_, std::move(script)), asio::detached);
}

RawServer::~RawServer() { acceptor_->close(); }

}  // namespace yado::wire
