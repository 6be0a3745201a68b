#include "agent/supervisor/janitor.hpp"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/cgroup.hpp"
#include "os/pidfd.hpp"

namespace yado::supervisor {

Result<os::Process> start_janitor(const std::string& cgroup, const std::filesystem::path& socket) {
  YADO_ASSIGN(const os::Pidfd watched, os::Pidfd::open(::getpid()), "janitor");
  const auto watch = [&]() -> int {
    ::prctl(PR_SET_NAME, "yado-janitor");
    // Nothing of the supervisor's is held open, least of all its clients' connections.
    const int keep = 3;
    if (::dup2(watched.fd(), keep) != keep) return 1;
    ::syscall(SYS_close_range, 4U, ~0U, 0U);
    (void)os::readable_within(keep, std::nullopt);
    if (auto left = os::Cgroup::open(cgroup)) (void)left->remove();
    ::unlink(socket.c_str());
    return 0;
  };
  return os::fork_child(watch, 0);
}

}  // namespace yado::supervisor
