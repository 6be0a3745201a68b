#include "os/process.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::os {

struct ProcessMaker {
  static Result<Process> make(pid_t pid, bool leads_group) {
    Process process;
    auto pidfd = Pidfd::open(pid);
    if (!pidfd) {
      ::kill(pid, SIGKILL);
      return context(pidfd.error(), "watch a new child");
    }
    process.pidfd_ = std::move(*pidfd);
    process.leads_group_ = leads_group;
    return process;
  }
};

namespace {

constexpr int first_spare = 64;  ///< where descriptors are parked while they are put in their places

/// Everything between fork and exec. Returns only on failure.
Status become(const Spawn& options) {
  reset_signals();
  if (options.new_session) ::setsid();
  else if (options.process_group) ::setpgid(0, 0);
  if (options.death_signal != 0) ::prctl(PR_SET_PDEATHSIG, options.death_signal);

  // Parked high first: a target number may be one of the sources.
  std::vector<std::pair<int, int>> wanted = options.descriptors;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  const int standard[3] = {options.standard_input, options.standard_output, options.standard_error};
  for (int i = 0; i < 3; ++i) wanted.emplace_back(standard[i] < 0 ? null : standard[i], i);
  int spare = first_spare;
  for (const auto& [ours, its] : wanted) spare = std::max(spare, its + 1);
  for (auto& [ours, its] : wanted) {
    ours = ::fcntl(ours, F_DUPFD_CLOEXEC, spare);
    if (ours < 0) return fail_errno(fmt::format("pass descriptor {}", its));
  }
  // Whoever made a descriptor without close-on-exec did not mean this program by it.
  ::syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */);
  for (const auto& [ours, its] : wanted)
    if (::dup2(ours, its) < 0) return fail_errno(fmt::format("pass descriptor {}", its));

  if (options.in_child) YADO_TRY(options.in_child(), "prepare");

  std::vector<char*> arguments, environment;
  for (const std::string& text : options.arguments) arguments.push_back(const_cast<char*>(text.c_str()));
  for (const std::string& text : options.environment) environment.push_back(const_cast<char*>(text.c_str()));
  arguments.push_back(nullptr);
  environment.push_back(nullptr);
  ::execve(arguments[0], arguments.data(), environment.data());
  return fail_errno("exec");
}

}  // namespace

void reset_signals() {
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    kill();
    pidfd_ = std::move(other.pidfd_);
    leads_group_ = other.leads_group_;
  }
  return *this;
}

Process::~Process() { kill(); }

Result<std::optional<ExitStatus>> Process::wait(std::optional<nanoseconds> limit) {
  YADO_ASSIGN(const bool ended, pidfd_.ended_within(limit), "wait");
  if (!ended) return std::optional<ExitStatus>{};
  auto status = pidfd_.reap();
  pidfd_ = Pidfd{};
  return status;
}

void Process::kill() {
  if (!pidfd_.valid()) return;
  // The group first: as long as the leader is not reaped its number cannot belong to anybody else.
  if (leads_group_) ::kill(-pidfd_.pid(), SIGKILL);
  (void)pidfd_.send(SIGKILL);
  (void)wait(std::nullopt);
}

Result<Process> spawn(const Spawn& options) {
  if (options.arguments.empty()) return fail(Errc::invalid_argument, "no program given");
  YADO_ASSIGN(Pipe error, make_pipe(), "spawn");
  // The write end must survive the dup2 calls of the child, whatever numbers they use.
  Fd report(::fcntl(error.write.get(), F_DUPFD_CLOEXEC, 200));
  if (!report.valid()) return fail_errno("spawn: dup");
  error.write.reset();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno(fmt::format("fork for {}", options.arguments[0]));
  if (pid == 0) {
    const Status failed = become(options);
    const std::string text = fmt::format("{}:{}", static_cast<int>(failed.error().code), failed.error().message);
    (void)!::write(report.get(), text.data(), text.size());
    ::_exit(127);
  }
  report.reset();
  YADO_ASSIGN(Process process, ProcessMaker::make(pid, options.process_group || options.new_session), "spawn");
  std::string text;
  char buffer[512];
  for (;;) {
    const ssize_t n = ::read(error.read.get(), buffer, sizeof buffer);
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
    else if (n == 0 || errno != EINTR) break;
  }
  if (text.empty()) return process;
  const std::size_t colon = text.find(':');
  return fail(static_cast<Errc>(std::atoi(text.c_str())), "start {}: {}", options.arguments[0],
              colon == std::string::npos ? text : text.substr(colon + 1));
}

Result<Process> fork_child(const std::function<int()>& body, int death_signal) {
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno("fork");
  if (pid == 0) {
    reset_signals();
    ::setpgid(0, 0);
    if (death_signal != 0) {
      ::prctl(PR_SET_PDEATHSIG, death_signal);
      if (::getppid() != parent) ::_exit(1);  // the parent died before the request took effect
    }
    ::_exit(body());
  }
  ::setpgid(pid, pid);  // also here: kill() must find the group even when the child has not run yet
  return ProcessMaker::make(pid, true);
}

}  // namespace yado::os
