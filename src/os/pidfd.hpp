#pragma once
// A process held by a file descriptor: the number cannot be reused under it (pidfd_open(2)).

#include <optional>
#include <string>
#include <sys/types.h>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/fd.hpp"

namespace yado::os {

/// How a process ended: `signal` is 0 when it exited by itself with `code`.
struct ExitStatus {
  int code = 0;
  int signal = 0;
  bool success() const { return code == 0 && signal == 0; }
  /// "exit status 1", "killed by signal 9".
  std::string text() const;
  bool operator==(const ExitStatus&) const = default;
};

class Pidfd {
 public:
  Pidfd() = default;
  /// Error `not_found` when there is no such process (any more).
  static Result<Pidfd> open(pid_t pid);

  pid_t pid() const { return pid_; }
  /// Becomes readable when the process has ended: for poll and epoll.
  int fd() const { return fd_.get(); }
  bool valid() const { return fd_.valid(); }
  const Fd& handle() const { return fd_; }

  /// Error `not_found` when it has ended and was reaped.
  Status send(int signal) const;
  /// True when it ended within `limit` (none: for ever). Reaps nothing.
  Result<bool> ended_within(std::optional<nanoseconds> limit) const;
  /// Reaps an ended child; nothing when it still runs. Only for a process whose parent is the caller.
  Result<std::optional<ExitStatus>> reap() const;

 private:
  Pidfd(pid_t pid, Fd fd) : pid_(pid), fd_(std::move(fd)) {}
  pid_t pid_ = -1;
  Fd fd_;
};

/// poll(2) of one descriptor for reading, restarted after signals; false when `limit` passed.
Result<bool> readable_within(int fd, std::optional<nanoseconds> limit, short events = 1 /* POLLIN */);

}  // namespace yado::os
