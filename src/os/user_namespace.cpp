#include "os/user_namespace.hpp"

#include <csignal>
#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::os {

Status write_id_maps(pid_t pid, const std::vector<IdRange>& ranges) {
  std::string text;
  for (const IdRange& range : ranges) text += fmt::format("{} {} {}\n", range.inside, range.outside, range.count);
  YADO_TRY(write_kernel_file(fmt::format("/proc/{}/uid_map", pid), text), "map user ids");
  YADO_TRY(write_kernel_file(fmt::format("/proc/{}/gid_map", pid), text), "map group ids");
  return {};
}

Result<Fd> make_id_map(const std::vector<IdRange>& ranges) {
  // The namespace needs a process only until it is opened. A raw clone: the child does nothing but wait.
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr, nullptr, nullptr, 0));
  if (child < 0) return fail_errno("clone with a user namespace");
  if (child == 0)
    for (;;) ::pause();
  Status mapped = write_id_maps(child, ranges);
  Result<Fd> opened = open_path(fmt::format("/proc/{}/ns/user", child), O_RDONLY);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  YADO_TRY(mapped, "id map");
  return opened;
}

}  // namespace yado::os
