#include "split_vm_supervise.hpp"

#include <sys/prctl.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>

#include "lab/state_directory.hpp"
#include "os/process.hpp"

namespace yado::bench {
namespace {

/// What the child has left, however it ended: control groups and directories of its lab, and processes, which are this process's
/// children now. Error `already_exists` when another benchmark is running.
Status sweep(const RigOptions& rig) {
  { YADO_TRY(lab::StateDirectory::create(rig.run_directory, rig_name), "rig"); }
  while (::waitpid(-1, nullptr, 0) > 0 || errno == EINTR) {}
  return {};
}

/// The child's exit status, or 128 + the signal that interrupted it.
int wait_for(os::Process& child, const sigset_t& signals) {
  for (;;) {
    int signal = 0;
    ::sigwait(&signals, &signal);
    if (signal == SIGCHLD) {
      const auto ended = child.wait(0ns);  // an orphan's end wakes us as well
      if (ended && !*ended) continue;
      if (!ended) return 1;
      if ((*ended)->signal != 0) fmt::print(stderr, "bench: {}\n", (*ended)->text());
      return (*ended)->signal != 0 ? 1 : (*ended)->code;
    }
    fmt::print(stderr, "\ninterrupted: taking everything away\n");
    child.kill();
    return 128 + signal;
  }
}

}  // namespace

void Progress::operator()(const std::string& line) const {
  fmt::print("[{:6.1f} s] {}\n", to_ms(os::now() - begun_) / 1000, line);
  std::fflush(stdout);
}

Result<int> supervise(const RigOptions& options, const Hold& hold, const std::function<int(const RigDisks&, Held*)>& measure) {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) ::sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);

  YADO_TRY(sweep(options), "before");
  int status = 0;
  {
    YADO_ASSIGN(const RigDisks disks, RigDisks::create(options), "rig");
    std::unique_ptr<Held> held;
    if (hold) {
      YADO_ASSIGN(held, hold(), "rig");
    }
    YADO_ASSIGN(os::Process child, os::fork_child([&] { return measure(disks, held.get()); }, SIGKILL), "measure");
    status = wait_for(child, signals);
    YADO_TRY(sweep(options), "afterwards");
  }
  std::error_code ignored;
  std::filesystem::remove(options.run_directory / fmt::format("{}-disks", rig_name), ignored);
  return status;
}

}  // namespace yado::bench
