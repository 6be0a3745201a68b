#pragma once
// The listening TCP sockets of an instance, as /proc shows them in its network namespace.

#include <cstdint>
#include <vector>

#include <sys/socket.h>
#include <sys/types.h>

#include "base/error.hpp"

namespace yado::container {

/// Where a client inside connects to for reaching `port`: one address per listening socket, a wildcard turned into
/// the loopback address. Empty: nobody listens.
std::vector<sockaddr_storage> listeners(pid_t process, std::uint16_t port);

/// Opens one connection to each of them and closes it without a word. Everybody who waits for a connection wakes up.
/// `network_namespace`: of the instance; the calling thread goes there and comes back.
Status knock(pid_t process, std::uint16_t port, int network_namespace);

}  // namespace yado::container
