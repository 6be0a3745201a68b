#pragma once
// Listening sockets: made here, with errors that name the address, and handed to Asio afterwards.

#include <cstdint>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::wire {

/// A socket file as it was made, so that it is removed only while it is still that one.
struct SocketFile {
  std::string path;
  std::uint64_t device = 0;
  std::uint64_t inode = 0;

  void remove() const;
};

struct UnixListener {
  os::Fd socket;
  SocketFile file;
};

/// A file left behind by a dead process is replaced; one that somebody serves, or that is no socket, is an error.
Result<UnixListener> make_unix_listener(const std::string& path, unsigned mode);

/// `address` is numeric (IPv4 or IPv6).
Result<os::Fd> make_tcp_listener(const std::string& address, std::uint16_t port);

/// Checks that a socket from elsewhere (socket activation) listens and is of one of these families; returns its port
/// (0 for a unix socket).
Result<std::uint16_t> check_listener(const os::Fd& socket, bool tcp);

}  // namespace yado::wire
