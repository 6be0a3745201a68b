#include "wire/server.hpp"

#include <unordered_map>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.hpp"
#include "wire/connection.hpp"
#include "wire/listen.hpp"

namespace yado::wire {
namespace asio = boost::asio;
using boost::system::error_code;
namespace {

/// Out of file descriptors or memory: accepting fails until somebody closes something. Trying again at once would spin.
constexpr auto accept_retry = std::chrono::milliseconds(50);

struct Listener {
  explicit Listener(asio::io_context& io) : acceptor(io), retry(io) {}

  asio::basic_socket_acceptor<asio::generic::stream_protocol> acceptor;
  asio::steady_timer retry;
  std::shared_ptr<asio::ssl::context> tls;
  SocketFile file;

  void close() {
    error_code ignored;
    acceptor.close(ignored);
    retry.cancel();
    file.remove();
  }
};

std::string peer_address(const Stream::Socket& socket) {
  error_code error;
  const auto endpoint = socket.remote_endpoint(error);
  if (error) return "a peer that is gone";
  char text[INET6_ADDRSTRLEN] = "";
  if (endpoint.protocol().family() == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(endpoint.data());
    ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return fmt::format("{}:{}", text, ntohs(v4->sin_port));
  }
  if (endpoint.protocol().family() == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(endpoint.data());
    ::inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
    return fmt::format("[{}]:{}", text, ntohs(v6->sin6_port));
  }
  return "a local peer";
}

}  // namespace

struct Server::Impl : std::enable_shared_from_this<Impl> {
  asio::io_context& io;
  std::shared_ptr<const Handler> handler;
  Limits limits;
  bool stopped = false;
  std::vector<std::shared_ptr<Listener>> listeners;
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections;

  Impl(asio::io_context& context, Handler call, Limits bounds)
      : io(context), handler(std::make_shared<const Handler>(std::move(call))), limits(bounds) {}

  Status listen(os::Fd socket, int family, std::shared_ptr<asio::ssl::context> tls, SocketFile file) {
    if (stopped) return fail(Errc::canceled, "the server was stopped");
    auto listener = std::make_shared<Listener>(io);
    error_code error;
    listener->acceptor.assign(asio::generic::stream_protocol(family, 0), socket.get(), error);
    if (error) return fail(Errc::io, "watch a listening socket: {}", error.message());
    (void)socket.release();
    listener->tls = std::move(tls);
    listener->file = std::move(file);
    listeners.push_back(listener);
    asio::co_spawn(io, accept(shared_from_this(), listener), asio::detached);
    return {};
  }

  static asio::awaitable<void> accept(std::shared_ptr<Impl> self, std::shared_ptr<Listener> listener) {
    while (!self->stopped) {
      Stream::Socket socket(self->io);
      auto [error] = co_await listener->acceptor.async_accept(socket, asio::as_tuple(asio::use_awaitable));
      if (self->stopped) break;
      if (!error) {
        self->start(std::move(socket), *listener);
      } else if (error != asio::error::connection_aborted) {
        log::error("cannot accept connections: {}", error.message());
        listener->retry.expires_after(accept_retry);
        co_await listener->retry.async_wait(asio::as_tuple(asio::use_awaitable));
      }
    }
  }

  void start(Stream::Socket socket, const Listener& listener) {
    std::string from = peer_address(socket);
    if (listener.tls) tune_tcp(socket);
    auto connection = std::make_shared<Connection>(Stream(std::move(socket), listener.tls), std::move(from),
                                                   listener.tls != nullptr, limits, handler);
    connections.emplace(connection.get(), connection);
    asio::co_spawn(io, Connection::serve(connection),
                   asio::bind_cancellation_slot(connection->cancellation().slot(),
                                                [self = shared_from_this(), connection](std::exception_ptr) {
                                                  connection->close();
                                                  self->connections.erase(connection.get());
                                                }));
  }

  void stop() {
    stopped = true;
    for (const auto& listener : std::exchange(listeners, {})) listener->close();
    // Ending one may end others through what its handler held: work on a copy.
    for (const auto& [key, connection] : std::exchange(connections, {})) {
      connection->close();
      connection->cancellation().emit(asio::cancellation_type::terminal);
    }
  }
};

Server::Server(asio::io_context& io, Handler handler, Limits limits)
    : impl_(std::make_shared<Impl>(io, std::move(handler), limits)) {}

Server::~Server() { impl_->stop(); }

Status Server::listen_unix(const std::string& path, unsigned mode) {
  YADO_ASSIGN(auto made, make_unix_listener(path, mode), "server");
  return impl_->listen(std::move(made.socket), AF_UNIX, nullptr, std::move(made.file));
}

Status Server::listen_unix(os::Fd listener) {
  YADO_TRY(check_listener(listener, false), "server");
  return impl_->listen(std::move(listener), AF_UNIX, nullptr, SocketFile{});
}

Result<std::uint16_t> Server::listen_tls(const std::string& address, std::uint16_t port, const Identity& identity) {
  YADO_ASSIGN(auto socket, make_tcp_listener(address, port), "server");
  YADO_ASSIGN(const std::uint16_t bound, check_listener(socket, true), "server");
  YADO_TRY(listen_tls(std::move(socket), identity), "server");
  return bound;
}

Status Server::listen_tls(os::Fd listener, const Identity& identity) {
  YADO_TRY(check_listener(listener, true), "server");
  YADO_ASSIGN(auto tls, server_context(identity), "server");
  return impl_->listen(std::move(listener), AF_INET, std::move(tls), SocketFile{});
}

void Server::stop() { impl_->stop(); }

}  // namespace yado::wire
