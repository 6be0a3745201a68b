#include "split_vm_link.hpp"

#include <algorithm>
#include <thread>
#include <vector>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/units.hpp"
#include "os/clock.hpp"

namespace yado::bench {
namespace {

constexpr std::size_t chunk_bytes = 64_KiB;
constexpr timeval silence_limit{.tv_sec = 10, .tv_usec = 0};  // keeps a broken link from hanging us

sockaddr_in endpoint(net::Ipv4 address, in_port_t port) {
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = address.network_order();
  at.sin_port = port;
  return at;
}

Result<os::Fd> make_socket() {
  os::Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno("socket");
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO}) ::setsockopt(socket.get(), SOL_SOCKET, option, &silence_limit, sizeof silence_limit);
  return socket;
}

Result<os::Fd> listen_at(net::Ipv4 address) {
  YADO_ASSIGN(os::Fd socket, make_socket(), "listen");
  const sockaddr_in at = endpoint(address, 0);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) < 0 || ::listen(socket.get(), 1) < 0) return fail_errno("listen");
  return socket;
}

Result<os::Fd> connect_to(net::Ipv4 address, in_port_t port) {
  YADO_ASSIGN(os::Fd socket, make_socket(), "connect");
  const sockaddr_in at = endpoint(address, port);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) < 0) return fail_errno("connect");
  return socket;
}

}  // namespace

Result<double> link_rate(const os::Netns& from, const os::Netns& to, net::Ipv4 address, std::uint64_t bits_per_second) {
  const std::uint64_t bytes = std::max<std::uint64_t>(bits_per_second / 8 / 4, 1_MiB);
  YADO_ASSIGN(const os::Fd listener, os::run_in(to, [&] { return listen_at(address); }), "measure a link");
  sockaddr_in at{};
  socklen_t size = sizeof at;
  if (::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size) < 0) return fail_errno("measure a link");
  YADO_ASSIGN(const os::Fd sender, os::run_in(from, [&] { return connect_to(address, at.sin_port); }), "measure a link");
  const os::Fd receiver(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!receiver.valid()) return fail_errno("measure a link: accept");

  const Instant begun = os::now();
  std::jthread sending([&] {
    const std::vector<char> chunk(chunk_bytes);
    for (std::uint64_t sent = 0; sent < bytes;) {
      const ssize_t n = ::send(sender.get(), chunk.data(), std::min<std::uint64_t>(chunk.size(), bytes - sent), MSG_NOSIGNAL);
      if (n <= 0) break;  // the receiver sees the end
      sent += static_cast<std::uint64_t>(n);
    }
    ::shutdown(sender.get(), SHUT_WR);
  });
  std::vector<char> chunk(chunk_bytes);
  std::uint64_t received = 0;
  for (ssize_t n; (n = ::read(receiver.get(), chunk.data(), chunk.size())) > 0;) received += static_cast<std::uint64_t>(n);
  if (received != bytes) return fail(Errc::io, "measure a link: {} of {} bytes arrived", received, bytes);
  return static_cast<double>(bytes) / (to_ms(os::now() - begun) / 1000);
}

}  // namespace yado::bench
