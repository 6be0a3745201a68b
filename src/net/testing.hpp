#pragma once
// For tests only: TCP sockets made inside a given network namespace, used from anywhere. Blocking; a bound of 5 s keeps
// a broken test from hanging and is never what a test asserts.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "os/fd.hpp"
#include "os/netns.hpp"

namespace yado::net::testing {

inline constexpr int hang_ms = 5'000;

inline sockaddr_in6 endpoint(const std::string& address, std::uint16_t port, socklen_t& size) {
  sockaddr_in6 result{};
  if (address.find(':') != std::string::npos) {
    result.sin6_family = AF_INET6;
    result.sin6_port = htons(port);
    ::inet_pton(AF_INET6, address.c_str(), &result.sin6_addr);
    size = sizeof(sockaddr_in6);
  } else {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    ::inet_pton(AF_INET, address.c_str(), &v4.sin_addr);
    std::memcpy(&result, &v4, sizeof v4);
    size = sizeof v4;
  }
  return result;
}

inline Result<os::Fd> listen_in(const os::Netns& netns, const std::string& address, std::uint16_t port) {
  return os::run_in(netns, [&]() -> Result<os::Fd> {
    socklen_t size = 0;
    const sockaddr_in6 where = endpoint(address, port, size);
    os::Fd fd(::socket(where.sin6_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&where), size) < 0) return fail_errno("bind");
    if (::listen(fd.get(), 16) < 0) return fail_errno("listen");
    return fd;
  });
}

/// Connects within `wait_ms`; Errc::timed_out when nobody has answered by then.
inline Result<os::Fd> connect_in(const os::Netns& netns, const std::string& address, std::uint16_t port,
                                 int wait_ms = hang_ms) {
  return os::run_in(netns, [&]() -> Result<os::Fd> {
    socklen_t size = 0;
    const sockaddr_in6 where = endpoint(address, port, size);
    os::Fd fd(::socket(where.sin6_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&where), size);
    pollfd waiting{fd.get(), POLLOUT, 0};
    if (::poll(&waiting, 1, wait_ms) == 0) return fail_errno(ETIMEDOUT, "connect");
    int error = 0;
    socklen_t error_size = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &error_size);
    if (error != 0) return fail_errno(error, "connect");
    return fd;
  });
}

struct Accepted {
  os::Fd fd;
  std::string peer;
};

inline Result<Accepted> accept_one(const os::Fd& listener) {
  pollfd waiting{listener.get(), POLLIN, 0};
  if (::poll(&waiting, 1, hang_ms) == 0) return fail_errno(ETIMEDOUT, "accept");
  sockaddr_in6 peer{};
  socklen_t size = sizeof peer;
  os::Fd fd(::accept4(listener.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC));
  if (!fd.valid()) return fail_errno("accept");
  char text[INET6_ADDRSTRLEN] = "";
  if (peer.sin6_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof text);
  } else {
    sockaddr_in v4{};
    std::memcpy(&v4, &peer, sizeof v4);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
  }
  return Accepted{std::move(fd), text};
}

/// One byte sent on `from` arrives on `to`.
inline bool passes(const os::Fd& from, const os::Fd& to, int wait_ms = hang_ms) {
  char byte = 'y';
  if (::send(from.get(), &byte, 1, MSG_NOSIGNAL) != 1) return false;
  pollfd waiting{to.get(), POLLIN, 0};
  char got = 0;
  return ::poll(&waiting, 1, wait_ms) == 1 && ::recv(to.get(), &got, 1, 0) == 1 && got == 'y';
}

}  // namespace yado::net::testing
