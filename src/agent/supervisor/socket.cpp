#include "agent/supervisor/socket.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/supervisor/protocol.hpp"

namespace yado::supervisor {
namespace {

/// The path as an address. A socket's path is short (108 bytes): a long one is reached through its directory.
struct Address {
  sockaddr_un address{};
  os::Fd directory;

  static Result<Address> of(const std::filesystem::path& path) {
    Address made;
    made.address.sun_family = AF_UNIX;
    std::string text = path.native();
    if (text.size() >= sizeof made.address.sun_path) {
      made.directory = os::Fd(::open(path.parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
      if (!made.directory.valid()) return fail_errno("open " + path.parent_path().native());
      text = fmt::format("/proc/self/fd/{}/{}", made.directory.get(), path.filename().native());
    }
    std::memcpy(made.address.sun_path, text.c_str(), text.size() + 1);
    return made;
  }
};

constexpr int buffer_bytes = 1 << 20;

}  // namespace

Result<os::Fd> listen_at(const std::filesystem::path& path) {
  YADO_ASSIGN(const Address at, Address::of(path), "listen");
  os::Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return fail_errno("socket");
  ::unlink(path.c_str());
  const mode_t old = ::umask(0177);
  const int bound = ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&at.address), sizeof at.address);
  const int number = errno;
  ::umask(old);
  if (bound != 0) return fail_errno(number, "bind " + path.native());
  if (::listen(socket.get(), 16) != 0) return fail_errno("listen at " + path.native());
  return socket;
}

Result<os::Fd> connect_to(const std::filesystem::path& path) {
  YADO_ASSIGN(const Address at, Address::of(path), "connect");
  os::Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return fail_errno("socket");
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&at.address), sizeof at.address) != 0)
    return fail_errno("connect to " + path.native());
  return socket;
}

Status send_packet(const os::Fd& socket, std::string_view text) {
  if (text.size() > packet_bytes) return fail(Errc::internal, "a packet of {} bytes is too large", text.size());
  for (;;) {
    if (::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return {};
    if (errno != EINTR) return fail_errno("send to a client");
  }
}

Result<std::optional<std::string>> receive_packet(const os::Fd& socket) {
  std::string text(packet_bytes, '\0');
  for (;;) {
    const ssize_t n = ::recv(socket.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_TRUNC);
    if (n == 0) return fail(Errc::refused, "the other side closed the connection");
    if (n > static_cast<ssize_t>(text.size())) return fail(Errc::invalid_argument, "a packet of {} bytes is too large", n);
    if (n > 0) {
      text.resize(static_cast<std::size_t>(n));
      return std::optional(std::move(text));
    }
    if (errno == EAGAIN) return std::optional<std::string>{};
    if (errno != EINTR) return fail_errno("receive");
  }
}

}  // namespace yado::supervisor
