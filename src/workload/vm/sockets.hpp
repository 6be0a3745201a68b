#pragma once
// Local stream sockets between us and QEMU.

#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::vm {

struct SocketPair {
  os::Fd ours, theirs;  ///< `ours` is non-blocking
};
Result<SocketPair> make_socket_pair();

/// A listening socket `name` in an open directory, in place of one that may be there. By way of the descriptor, because
/// a socket's whole path may have 107 characters only (unix(7)). `queue`: how many may wait beside the one that is served.
Result<os::Fd> listen_in(const os::Fd& directory, const std::string& name, int queue = 1);
/// Errors: `not_found`, `refused` when nobody listens any more, `unavailable` when the listener's queue is full.
Result<os::Fd> connect_in(const os::Fd& directory, const std::string& name);

}  // namespace yado::vm
