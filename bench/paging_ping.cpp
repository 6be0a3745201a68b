#include "paging_ping.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <thread>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "os/clock.hpp"
#include "wire/tls.hpp"

namespace yado::bench {
namespace {

constexpr std::size_t request_bytes = 32, page_bytes = 4096;
constexpr timeval silence_limit{.tv_sec = 10, .tv_usec = 0};  // keeps a broken link from hanging us

struct FreeSsl {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};

/// A connected socket, perhaps with TLS over it. Blocking.
class Stream {
 public:
  explicit Stream(os::Fd socket) : socket_(std::move(socket)) {
    const int on = 1;
    ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO}) ::setsockopt(socket_.get(), SOL_SOCKET, option, &silence_limit, sizeof silence_limit);
  }
  Status secure(boost::asio::ssl::context& context, bool server) {
    ssl_.reset(SSL_new(context.native_handle()));
    if (!ssl_ || SSL_set_fd(ssl_.get(), socket_.get()) != 1 || (server ? SSL_accept(ssl_.get()) : SSL_connect(ssl_.get())) != 1)
      return fail(Errc::unavailable, "round trip: no TLS");
    return {};
  }
  bool send(std::span<const std::byte> bytes) {
    if (ssl_) return SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size());
    return ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  bool receive(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ssl_ ? SSL_read(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) : ::read(socket_.get(), bytes.data(), bytes.size());
      if (n <= 0) return false;
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
    return true;
  }
  void end() { ::shutdown(socket_.get(), SHUT_RDWR); }

 private:
  os::Fd socket_;
  std::unique_ptr<SSL, FreeSsl> ssl_;
};

Result<os::Fd> listen_at(net::Ipv4 address, sockaddr_in& at) {
  os::Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  at = {};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = address.network_order();
  socklen_t size = sizeof at;
  if (!socket.valid() || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) < 0 || ::listen(socket.get(), 1) < 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&at), &size) < 0)
    return fail_errno("listen");
  return socket;
}

Result<os::Fd> connect_to(const sockaddr_in& at) {
  os::Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid() || ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) < 0) return fail_errno("connect");
  return socket;
}

struct Contexts {
  std::shared_ptr<boost::asio::ssl::context> server, client;
};

Result<Contexts> make_contexts(const std::filesystem::path& directory) {
  YADO_ASSIGN(const wire::Authority authority, wire::Authority::open_or_create(directory), "certificates");
  YADO_ASSIGN(const wire::Identity server, authority.issue("agent:server"), "certificates");
  YADO_ASSIGN(const wire::Identity client, authority.issue("agent:client"), "certificates");
  Contexts made;
  YADO_ASSIGN(made.server, wire::server_context(server), "certificates");
  YADO_ASSIGN(made.client, wire::client_context(client), "certificates");
  return made;
}

Result<RoundTrips> measure(Stream& client, int count) {
  std::array<std::byte, request_bytes> request{};
  std::array<std::byte, request_bytes + page_bytes> page{};
  std::vector<double> us;
  for (int i = 0; i < count; ++i) {
    const Instant begun = os::now();
    if (!client.send(request) || !client.receive(page)) return fail(Errc::unavailable, "round trip: the connection ended");
    us.push_back(to_ms(os::now() - begun) * 1000);
  }
  std::ranges::sort(us);
  const auto at = [&](double part) { return us[static_cast<std::size_t>(std::ceil(part * static_cast<double>(us.size()))) - 1]; };
  return RoundTrips{.p50_us = at(0.5), .p99_us = at(0.99)};
}

}  // namespace

Result<RoundTrips> ping_pages(Rig& rig, const WorkDirectories& work, bool tls, int count) {
  const HostId &from = rig.hosts().front(), &to = rig.hosts().back();
  YADO_ASSIGN(const Contexts contexts, make_contexts(work.of(0) / "ping-authority"), "round trip");
  YADO_ASSIGN(const os::Netns* near, rig.lab().netns(from), "round trip");
  YADO_ASSIGN(const os::Netns* far, rig.lab().netns(to), "round trip");
  sockaddr_in at{};
  YADO_ASSIGN(const os::Fd listener, os::run_in(*far, [&] { return listen_at(rig.lab().address(to), at); }), "round trip");
  YADO_ASSIGN(os::Fd connected, os::run_in(*near, [&] { return connect_to(at); }), "round trip");
  os::Fd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!accepted.valid()) return fail_errno("round trip: accept");
  Stream client(std::move(connected)), server(std::move(accepted));
  std::jthread serving([&] {
    if (tls && !server.secure(*contexts.server, true)) return server.end();
    std::array<std::byte, request_bytes> request{};
    const std::array<std::byte, request_bytes + page_bytes> page{};
    while (server.receive(request) && server.send(page)) {}
  });
  Status secured;
  if (tls) secured = client.secure(*contexts.client, false);
  auto result = secured ? measure(client, count) : Result<RoundTrips>(std::unexpected(secured.error()));
  client.end();  // the other side sees it
  return result;
}

}  // namespace yado::bench
