#include "wire/server.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <unordered_map>
#include <vector>

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

std::string text_of(const sockaddr_storage& peer) {
  char text[INET6_ADDRSTRLEN] = "";
  if (peer.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&peer);
    ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return fmt::format("{}:{}", text, ntohs(v4->sin_port));
  }
  if (peer.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&peer);
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

  /// accept4() and not Asio's accept: that one leaves descriptors open in every program the process starts.
  static asio::awaitable<void> accept(std::shared_ptr<Impl> self, std::shared_ptr<Listener> listener) {
    bool short_of_something = false;
    while (!self->stopped) {
      co_await listener->acceptor.async_wait(listener->acceptor.wait_read, asio::as_tuple(asio::use_awaitable));
      if (self->stopped) break;
      sockaddr_storage peer{};
      socklen_t size = sizeof peer;
      const int fd = ::accept4(listener->acceptor.native_handle(), reinterpret_cast<sockaddr*>(&peer), &size,
                               SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0) {
        short_of_something = false;
        self->start(os::Fd(fd), peer, *listener);
        continue;
      }
      // The peer may be gone again already; that is not our trouble (accept(2)).
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
      if (!std::exchange(short_of_something, true))
        log::error("connections wait: {}", fail_errno("accept").error().message);
      listener->retry.expires_after(accept_retry);
      co_await listener->retry.async_wait(asio::as_tuple(asio::use_awaitable));
    }
  }

  void start(os::Fd fd, const sockaddr_storage& peer, const Listener& listener) {
    Stream::Socket socket(io);
    error_code error;
    socket.assign(asio::generic::stream_protocol(peer.ss_family, 0), fd.get(), error);
    if (error) return log::error("cannot watch a new connection: {}", error.message());
    (void)fd.release();
    if (listener.tls) tune_tcp(socket);
    auto connection = std::make_shared<Connection>(Stream(std::move(socket), listener.tls), text_of(peer),
                                                   listener.tls != nullptr, limits, handler);
    connections.emplace(connection.get(), connection);
    asio::co_spawn(io, Connection::serve(connection), Ended{shared_from_this(), connection});
  }

  /// Names its cancellation slot itself: bind_cancellation_slot makes co_spawn of Boost 1.81 take a detour through the
  /// executor, with a pointer to a signal that may be gone by then.
  struct Ended {
    using cancellation_slot_type = asio::cancellation_slot;
    cancellation_slot_type get_cancellation_slot() const noexcept { return connection->cancellation().slot(); }
    void operator()(std::exception_ptr thrown) const {
      connection->close();
      server->connections.erase(connection.get());
      log_end(thrown);
    }
    std::shared_ptr<Impl> server;
    std::shared_ptr<Connection> connection;
  };

  /// A connection ends by an exception only when stop() cancels it, or by a defect.
  static void log_end(const std::exception_ptr& thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const boost::system::system_error& error) {
      if (error.code() != asio::error::operation_aborted) log::error("connection: {}", error.what());
    } catch (const std::exception& error) {
      log::error("connection: {}", error.what());
    }
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
