#include "workload/vm/sockets.hpp"

#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::vm {
namespace {

Result<sockaddr_un> address_of(const os::Fd& directory, const std::string& name) {
  const std::string path = fmt::format("/proc/self/fd/{}/{}", directory.get(), name);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return fail(Errc::invalid_argument, "socket name \"{}\" is too long", name);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Result<os::Fd> make_socket(int flags) {
  os::Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (!socket.valid()) return fail_errno("socket");
  return socket;
}

}  // namespace

Result<SocketPair> make_socket_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("socketpair");
  SocketPair pair{os::Fd(ends[0]), os::Fd(ends[1])};
  YADO_TRY(os::set_nonblocking(pair.ours), "socketpair");
  return pair;
}

Result<os::Fd> listen_in(const os::Fd& directory, const std::string& name, int queue) {
  YADO_ASSIGN(const sockaddr_un address, address_of(directory, name), "listen");
  YADO_ASSIGN(os::Fd socket, make_socket(0), "listen");
  (void)::unlinkat(directory.get(), name.c_str(), 0);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return fail_errno("bind " + name);
  if (::fchmodat(directory.get(), name.c_str(), 0600, 0) != 0) return fail_errno("chmod " + name);
  if (::listen(socket.get(), queue) != 0) return fail_errno("listen at " + name);
  return socket;
}

Result<os::Fd> connect_in(const os::Fd& directory, const std::string& name) {
  YADO_ASSIGN(const sockaddr_un address, address_of(directory, name), "connect");
  YADO_ASSIGN(os::Fd socket, make_socket(SOCK_NONBLOCK), "connect");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return fail_errno("connect to " + name);
  return socket;
}

}  // namespace yado::vm
