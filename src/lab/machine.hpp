#pragma once
// One lab host (or the front) while it is switched on: its namespaces, its init, and what was started through it.

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "os/cgroup.hpp"
#include "os/netns.hpp"
#include "os/pidfd.hpp"

namespace yado::lab {

/// A program running in a lab host. A handle only: dropping it changes nothing, the process belongs to the host.
class HostProcess {
 public:
  /// In the lab's pid namespace.
  pid_t pid() const { return pid_; }
  /// Readable when the process has ended: for poll and epoll.
  int fd() const { return pidfd_.get(); }
  /// Errc::not_found when it has ended.
  Status send(int signal) const;
  /// Nothing when `limit` passed first. A process that died with its host was "killed by signal 9".
  Result<std::optional<os::ExitStatus>> wait(std::optional<nanoseconds> limit);

 private:
  friend class Machine;
  HostProcess(pid_t pid, os::Fd pidfd, os::Fd status)
      : pid_(pid), pidfd_(std::move(pidfd)), status_(std::move(status)) {}

  pid_t pid_ = -1;
  os::Fd pidfd_, status_;
  std::optional<os::ExitStatus> ended_;
};

struct SpawnOptions {
  std::vector<std::string> arguments;            ///< [0] is an absolute path
  std::vector<std::string> environment;          ///< "KEY=value"; nothing is inherited
  std::string log_file;                          ///< stdout and stderr are appended to it; empty: /dev/null
  std::string directory = "/";                   ///< inside the host
  std::vector<std::pair<int, int>> descriptors;  ///< (ours, its number there); 0, 1 and 2 too
};

/// Move-only; destruction kills everything in it and returns when nothing is left.
class Machine {
 public:
  struct Plan {
    std::string name;    ///< its hostname too
    std::string cgroup;  ///< of everything in it but its init
  };
  /// `mounts`: the mount namespace it starts from. Returns when it can start programs.
  static Result<Machine> boot(const Plan& plan, os::Netns netns, const os::Fd& mounts);
  Machine(Machine&&) noexcept = default;
  Machine& operator=(Machine&& other) = delete;
  ~Machine() { kill(); }

  Result<HostProcess> spawn(const SpawnOptions& options);
  /// All of it, at once; returns when the last process is gone and reaped. May be repeated.
  void kill();

  const os::Netns& netns() const { return netns_; }
  const os::Cgroup& cgroup() const { return cgroup_; }
  pid_t init() const { return init_.pid(); }

 private:
  Machine(Plan plan, os::Netns netns) : plan_(std::move(plan)), netns_(std::move(netns)) {}
  Status start_init(const os::Fd& mounts);

  Plan plan_;
  os::Netns netns_;
  os::Cgroup cgroup_, process_cgroup_;
  os::Pidfd init_;
  os::Fd control_;
};

}  // namespace yado::lab
