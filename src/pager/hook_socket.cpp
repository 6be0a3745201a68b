#include "pager/hook_socket.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.hpp"
#include "pager/service.hpp"

namespace yado::pager {

Result<os::Fd> wait_for_hook(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof address.sun_path) return fail(Errc::invalid_argument, "{}: longer than a socket's path may be", path.native());
  std::memcpy(address.sun_path, path.c_str(), path.native().size() + 1);
  const os::Fd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!listener.valid()) return fail_errno("socket");
  struct stat there {};
  if (::lstat(path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode)) ::unlink(path.c_str());
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return fail_errno("bind " + path.native());
  if (::chmod(path.c_str(), 0600) != 0 || ::listen(listener.get(), 1) != 0) return fail_errno("listen at " + path.native());
  for (;;) {
    os::Fd hook(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!hook.valid() && errno == EINTR) continue;
    if (!hook.valid()) return fail_errno("accept at " + path.native());
    ::unlink(path.c_str());
    return hook;
  }
}

int run_service_at(const std::filesystem::path& hook_socket, const std::filesystem::path& config) {
  auto hook = wait_for_hook(hook_socket);
  if (!hook) {
    log::error("pager: {}", hook.error().text());
    return 1;
  }
  // As a supervisor gives them to it (service.hpp).
  constexpr int hook_descriptor = 3, ready_descriptor = 4, others = 10;
  const os::Fd kept(::fcntl(hook->get(), F_DUPFD_CLOEXEC, others));
  hook->reset();
  if (!kept.valid() || ::dup2(kept.get(), hook_descriptor) < 0 || ::dup2(STDERR_FILENO, ready_descriptor) < 0) {
    log::error("pager: {}", fail_errno("descriptors").error().text());
    return 1;
  }
  return run_service(config);
}

}  // namespace yado::pager
