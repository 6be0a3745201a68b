#include "os/pidfd.hpp"

#include <cerrno>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/clock.hpp"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace yado::os {

std::string ExitStatus::text() const {
  return signal != 0 ? fmt::format("killed by signal {}", signal) : fmt::format("exit status {}", code);
}

Result<Pidfd> Pidfd::open(pid_t pid) {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return fail_errno(fmt::format("pidfd_open {}", pid));
  return Pidfd(pid, Fd(fd));
}

Status Pidfd::send(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0) != 0)
    return fail_errno(fmt::format("signal {} to process {}", signal, pid_));
  return {};
}

Result<bool> Pidfd::ended_within(std::optional<nanoseconds> limit) const { return readable_within(fd_.get(), limit); }

Result<std::optional<ExitStatus>> Pidfd::reap() const {
  siginfo_t info{};
  // With WNOHANG a child that still runs leaves si_pid at 0 (waitid(2)).
  while (::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(fd_.get()), &info, WEXITED | WNOHANG) != 0)
    if (errno != EINTR) return fail_errno(fmt::format("waitid of process {}", pid_));
  if (info.si_pid == 0) return std::optional<ExitStatus>{};
  if (info.si_code == CLD_EXITED) return ExitStatus{info.si_status, 0};
  return ExitStatus{0, info.si_status};
}

Result<bool> readable_within(int fd, std::optional<nanoseconds> limit, short events) {
  const Instant deadline = limit ? now() + *limit : Instant::max();
  for (;;) {
    timespec left{};
    if (limit) {
      const nanoseconds rest = std::max(nanoseconds(0), nanoseconds(deadline - now()));
      left.tv_sec = static_cast<time_t>(rest.count() / 1'000'000'000);
      left.tv_nsec = static_cast<long>(rest.count() % 1'000'000'000);
    }
    pollfd wanted{fd, events, 0};
    const int ready = ::ppoll(&wanted, 1, limit ? &left : nullptr, nullptr);
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return fail_errno("poll");
  }
}

}  // namespace yado::os
