#include "lab/host_init.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <map>

#include "lab/state_directory.hpp"
#include "os/cgroup.hpp"
#include "os/process.hpp"

namespace yado::lab {
namespace {

/// The fork copied every descriptor of the lab, other hosts' sockets and its lock among them.
void keep_only(int a, int b) {
  const unsigned low = static_cast<unsigned>(std::min(a, b));
  const unsigned high = static_cast<unsigned>(std::max(a, b));
  const int null = ::open("/dev/null", O_RDWR);
  for (int standard : {0, 1, 2}) ::dup2(null, standard);
  if (low > 3) ::close_range(3, low - 1, 0);
  if (high > low + 1) ::close_range(low + 1, high - 1, 0);
  ::close_range(high + 1, ~0U, 0);
}

class Init {
 public:
  explicit Init(const InitOptions& options) : options_(options), control_(options.control) {}

  Status prepare() {
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    ::sigprocmask(SIG_SETMASK, &children, nullptr);
    children_ = os::Fd(::signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!children_.valid()) return fail_errno("signalfd");
    if (::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) < 0)
      return fail_errno("mount /proc");
    YADO_ASSIGN(cgroup_, os::Cgroup::open(options_.process_cgroup), "init");
    return {};
  }

  void run() {
    for (;;) {
      pollfd events[] = {{control_.get(), POLLIN, 0}, {options_.lab_process, POLLIN, 0}, {children_.get(), POLLIN, 0}};
      if (::poll(events, 3, -1) < 0) continue;  // EINTR
      if (events[1].revents != 0) return;
      if (events[2].revents != 0) reap();
      if (events[0].revents != 0 && !serve()) return;
    }
  }

  const os::Fd& control() const { return control_; }

 private:
  void reap() {
    signalfd_siginfo ignored{};
    while (::read(children_.get(), &ignored, sizeof ignored) > 0) {
    }
    int status = 0;
    for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      const auto found = status_pipes_.find(pid);
      if (found == status_pipes_.end()) continue;  // an orphan
      const os::ExitStatus ended =
          WIFSIGNALED(status) ? os::ExitStatus{0, WTERMSIG(status)} : os::ExitStatus{WEXITSTATUS(status), 0};
      (void)!::write(found->second.get(), &ended, sizeof ended);
      status_pipes_.erase(found);
    }
  }

  /// False: the lab is gone.
  bool serve() {
    auto received = receive_message<SpawnRequest>(control_);
    if (!received) return answer(std::unexpected(received.error()));
    if (!*received) return false;
    return answer(start((*received)->message, (*received)->descriptors));
  }

  Result<os::Pidfd> start(const SpawnRequest& request, std::vector<os::Fd>& descriptors) {
    if (descriptors.size() != request.targets.size() + 1)
      return fail(Errc::corrupt, "a request without its descriptors");
    os::Spawn spawn;
    spawn.arguments = request.arguments;
    spawn.environment = request.environment;
    spawn.new_session = true;
    for (std::size_t i = 0; i < request.targets.size(); ++i) {
      const int fd = descriptors[i + 1].get();
      switch (request.targets[i]) {
        case 0:
          spawn.standard_input = fd;
          break;
        case 1:
          spawn.standard_output = fd;
          break;
        case 2:
          spawn.standard_error = fd;
          break;
        default:
          spawn.descriptors.emplace_back(fd, request.targets[i]);
      }
    }
    spawn.in_child = [&]() -> Status {
      if (::chdir(request.directory.c_str()) < 0) return fail_errno(fmt::format("chdir {}", request.directory));
      return cgroup_.add(::getpid());
    };
    YADO_ASSIGN(os::Process process, os::spawn(spawn), "lab host");
    os::Pidfd pidfd = process.release();
    status_pipes_[pidfd.pid()] = std::move(descriptors[0]);
    return pidfd;
  }

  bool answer(const Result<os::Pidfd>& started) {
    if (started) return send_message(control_, SpawnReply{}, {started->fd()}).has_value();
    return send_message(control_, SpawnReply{started.error().code, started.error().message}, {}).has_value();
  }

  const InitOptions& options_;
  os::Fd control_, children_;
  os::Cgroup cgroup_;
  std::map<pid_t, os::Fd> status_pipes_;
};

}  // namespace

int host_init(const InitOptions& options) {
  os::reset_signals();
  ::setsid();
  ::prctl(PR_SET_NAME, "yado-lab-init");
  keep_only(options.control, options.lab_process);
  Init init(options);
  const Status ready = init.prepare();
  const SpawnReply reply = ready ? SpawnReply{} : SpawnReply{ready.error().code, ready.error().message};
  if (!send_message(init.control(), reply, {}) || !ready) return 1;
  init.run();
  // The end of this process is the end of all others here; frozen ones have to be let go to die of it.
  ::kill(-1, SIGKILL);
  thaw_tree(options.host_cgroup);
  return 0;
}

}  // namespace yado::lab
