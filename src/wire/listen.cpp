#include "wire/listen.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace yado::wire {
namespace {

Result<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(Errc::invalid_argument,
                "unix socket \"{}\": the path must have 1 to {} bytes (unix(7)); choose a shorter one", path,
                sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

/// Removes a socket file that nobody serves.
Status clear_stale(const std::string& path, const sockaddr_un& address) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(fmt::format("look at {}", path));
  }
  if (!S_ISSOCK(found.st_mode))
    return fail(Errc::already_exists, "{} exists and is not a socket: remove it or listen elsewhere", path);
  const os::Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return fail_errno("socket");
  // Only a refusal proves that nobody listens; EAGAIN means a full backlog, that is somebody busy.
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno != ECONNREFUSED)
    return fail(Errc::already_exists, "{} is served by a running process: stop that one or listen elsewhere", path);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno(fmt::format("remove stale socket {}", path));
  return {};
}

}  // namespace

void SocketFile::remove() const {
  struct stat found {};
  if (path.empty() || ::lstat(path.c_str(), &found) != 0) return;
  if (found.st_dev == device && found.st_ino == inode) ::unlink(path.c_str());
}

Result<UnixListener> make_unix_listener(const std::string& path, unsigned mode) {
  YADO_ASSIGN(const sockaddr_un address, unix_address(path), "listen");
  YADO_TRY(clear_stale(path, address), "listen");
  UnixListener made;
  made.socket = os::Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.socket.valid()) return fail_errno("socket");
  // Linux gives the file the mode of the socket's own inode (less the umask), so it is never wider than asked for;
  // chmod() then adds what the umask took.
  if (::fchmod(made.socket.get(), mode) != 0) return fail_errno(fmt::format("set the mode of {}", path));
  if (::bind(made.socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail_errno(fmt::format("listen on {}", path));
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) return fail_errno(fmt::format("look at {}", path));
  made.file = SocketFile{path, found.st_dev, found.st_ino};
  if (::chmod(path.c_str(), mode) != 0 || ::listen(made.socket.get(), SOMAXCONN) != 0) {
    auto failed = fail_errno(fmt::format("listen on {}", path));
    made.file.remove();
    return failed;
  }
  return made;
}

Result<os::Fd> make_tcp_listener(const std::string& address, std::uint16_t port) {
  sockaddr_storage storage{};
  socklen_t size = 0;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (::inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    size = sizeof *v4;
  } else if (::inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    size = sizeof *v6;
  } else {
    return fail(Errc::invalid_argument, "listen on \"{}\": not a numeric IPv4 or IPv6 address", address);
  }
  os::Fd made(::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.valid()) return fail_errno("socket");
  const int on = 1;  // a restarted role takes its port back although old connections are in TIME_WAIT
  ::setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(made.get(), reinterpret_cast<const sockaddr*>(&storage), size) != 0 ||
      ::listen(made.get(), SOMAXCONN) != 0)
    return errno == EADDRINUSE
               ? fail(Errc::already_exists, "listen on {} port {}: another process uses it", address, port)
               : fail_errno(fmt::format("listen on {} port {}", address, port));
  return made;
}

Result<std::uint16_t> check_listener(const os::Fd& socket, bool tcp) {
  int listening = 0;
  socklen_t size = sizeof listening;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0)
    return fail_errno(fmt::format("file descriptor {} given as a listener", socket.get()));
  sockaddr_storage name{};
  size = sizeof name;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&name), &size) != 0) return fail_errno("getsockname");
  const bool is_tcp = name.ss_family == AF_INET || name.ss_family == AF_INET6;
  if (listening == 0 || (tcp ? !is_tcp : name.ss_family != AF_UNIX))
    return fail(Errc::invalid_argument, "file descriptor {} given as a listener is not a listening {} socket",
                socket.get(), tcp ? "TCP" : "unix");
  if (name.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in*>(&name)->sin_port);
  if (name.ss_family == AF_INET6) return ntohs(reinterpret_cast<sockaddr_in6*>(&name)->sin6_port);
  return std::uint16_t{0};
}

}  // namespace yado::wire
