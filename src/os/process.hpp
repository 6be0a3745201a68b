#pragma once
// Starting programs: no shell, nothing inherited that was not named, and no child left behind.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "os/pidfd.hpp"

namespace yado::os {

/// A child. Destruction kills it (with its process group when it leads one) and reaps it.
class Process {
 public:
  Process() = default;
  Process(Process&& other) noexcept = default;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  const Pidfd& pidfd() const { return pidfd_; }
  bool running() const { return pidfd_.valid(); }
  /// Waits for the end and reaps. Nothing when `limit` passed: the child still runs.
  Result<std::optional<ExitStatus>> wait(std::optional<nanoseconds> limit);
  /// Kills (the whole group when it leads one) and reaps.
  void kill();
  /// The child lives on without this object.
  Pidfd release() { return std::exchange(pidfd_, Pidfd{}); }

 private:
  friend struct ProcessMaker;
  Pidfd pidfd_;
  bool leads_group_ = false;
};

struct Spawn {
  std::vector<std::string> arguments;            ///< [0] is an absolute path
  std::vector<std::string> environment;          ///< "KEY=value"; nothing is inherited
  int standard_input = -1;                       ///< -1: /dev/null, for each of the three
  int standard_output = -1;
  int standard_error = -1;
  std::vector<std::pair<int, int>> descriptors;  ///< (ours, its number in the child); numbers from 3 up
  bool process_group = true;                     ///< lead a group of its own, so that it dies with its children
  bool new_session = false;
  int death_signal = 0;                          ///< sent to the child when the calling *thread* dies (prctl(2))
  /// Runs in the child before exec: setns, unshare, cgroups. Its error is the error of `spawn`.
  std::function<Status()> in_child;
};

/// Returns after exec succeeded: a program that is missing is an error here, not an exit status 127 later.
Result<Process> spawn(const Spawn& options);

/// Runs `body` in a forked copy of this process, which ends with its return value; nothing of the copy's state is
/// unwound. Only from a process with one thread. All signals are unblocked and at their defaults in it.
Result<Process> fork_child(const std::function<int()>& body, int death_signal);

/// Signal mask emptied, all dispositions default: what a child wants before anything else.
void reset_signals();

}  // namespace yado::os
