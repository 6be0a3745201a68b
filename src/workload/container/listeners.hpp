#pragma once
// The listening TCP sockets of an instance, as /proc shows them in its network namespace.

#include <cstdint>
#include <vector>

#include <sys/socket.h>
#include <sys/types.h>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::container {

/// Where a client inside connects to for reaching `port`: one address per listening socket, a wildcard turned into
/// the loopback address. Empty: nobody listens.
std::vector<sockaddr_storage> listeners(pid_t process, std::uint16_t port);

/// A socket made inside the instance's network namespace and the address to connect it to.
struct Door {
  os::Fd socket;
  sockaddr_storage address{};
};
/// `count` unconnected sockets for the listeners of `port`, in turn. The calling thread goes into
/// `network_namespace` (-1: it is there) and comes back.
Result<std::vector<Door>> doors(pid_t process, std::uint16_t port, std::size_t count, int network_namespace);
/// Connects and says nothing. Over the loopback the connection stands when this returns.
void knock(const Door& door);

}  // namespace yado::container
