#include "lab/machine.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "lab/host_init.hpp"
#include "lab/state_directory.hpp"
#include "os/file.hpp"

namespace yado::lab {
namespace {

/// On a thread that is thrown away afterwards: it may move into namespaces, and leaves its child there.
Result<pid_t> fork_inside(const os::Netns& netns, const os::Fd& mounts, const std::string& hostname,
                          const InitOptions& options) {
  YADO_TRY(netns.enter(), "boot");
  // setns to a mount namespace wants a thread that shares its working directory with no other.
  if (::unshare(CLONE_FS) < 0 || ::setns(mounts.get(), CLONE_NEWNS) < 0) return fail_errno("enter the lab's mounts");
  if (::unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID) < 0)
    return fail_errno("make the host's namespaces");
  if (::sethostname(hostname.data(), hostname.size()) < 0) return fail_errno("sethostname");
  // fork(), not clone(): the C library makes malloc usable in the child of a process with several threads.
  const pid_t pid = ::fork();
  if (pid < 0) return fail_errno("fork the host's init");
  if (pid == 0) ::_exit(host_init(options));
  return pid;
}

/// The number, in our pid namespace, of the process behind a descriptor that was made in another one.
Result<pid_t> pid_of(const os::Fd& pidfd) {
  YADO_ASSIGN(const std::string info, os::read_text(fmt::format("/proc/self/fdinfo/{}", pidfd.get())), "pidfd");
  const auto at = info.find("\nPid:");
  return at == std::string::npos ? -1 : static_cast<pid_t>(std::atoi(info.c_str() + at + 5));
}

}  // namespace

Status HostProcess::send(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0) < 0)
    return fail_errno(fmt::format("signal {} to process {}", signal, pid_));
  return {};
}

Result<std::optional<os::ExitStatus>> HostProcess::wait(std::optional<nanoseconds> limit) {
  if (ended_) return ended_;
  YADO_ASSIGN(const bool ready, os::readable_within(status_.get(), limit), "wait");
  if (!ready) return std::optional<os::ExitStatus>{};
  os::ExitStatus status;
  const ssize_t got = ::read(status_.get(), &status, sizeof status);
  ended_ = got == sizeof status ? status : os::ExitStatus{0, SIGKILL};
  return ended_;
}

Result<Machine> Machine::boot(const Plan& plan, os::Netns netns, const os::Fd& mounts) {
  const std::string doing = fmt::format("boot {}", plan.name);
  Machine machine(plan, std::move(netns));
  YADO_ASSIGN(machine.cgroup_, os::Cgroup::create(plan.cgroup), doing);
  // A leaf of its own: under v2 a group with processes cannot have groups with controllers below it.
  YADO_ASSIGN(machine.process_cgroup_, os::Cgroup::create(plan.cgroup + "/host"), doing);
  YADO_TRY(machine.start_init(mounts), doing);
  return machine;
}

Status Machine::start_init(const os::Fd& mounts) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) return fail_errno("socketpair");
  control_ = os::Fd(pair[0]);
  os::Fd theirs(pair[1]);
  YADO_ASSIGN(const os::Pidfd lab, os::Pidfd::open(::getpid()), "lab");
  const InitOptions options{theirs.get(), lab.fd(), plan_.cgroup, plan_.cgroup + "/host"};
  Result<pid_t> forked;
  std::thread([&] { forked = fork_inside(netns_, mounts, plan_.name, options); }).join();
  YADO_TRY(forked, "init");
  YADO_ASSIGN(init_, os::Pidfd::open(*forked), "init");
  theirs.reset();
  YADO_ASSIGN(const auto ready, receive_message<SpawnReply>(control_), "init");
  if (!ready) return fail(Errc::io, "init ended before it was ready");
  if (!ready->message.message.empty()) return fail(ready->message.error, "init: {}", ready->message.message);
  return {};
}

Result<HostProcess> Machine::spawn(const SpawnOptions& options) {
  const std::string doing =
      fmt::format("start {} in {}", options.arguments.empty() ? "nothing" : options.arguments[0], plan_.name);
  if (!init_.valid()) return fail(Errc::conflict, "{}: the host is dead", doing);
  // A process that joins a frozen group stands still before it runs its program, and init would wait for it.
  YADO_ASSIGN(const bool frozen, cgroup_.frozen(), doing);
  if (frozen) return fail(Errc::conflict, "{}: the host is frozen", doing);

  YADO_ASSIGN(os::Pipe status, os::make_pipe(), doing);
  SpawnRequest request{options.arguments, options.environment, options.directory, {}};
  std::vector<int> descriptors = {status.write.get()};
  const auto pass = [&](int ours, int theirs) {
    descriptors.push_back(ours);
    request.targets.push_back(theirs);
  };
  os::Fd log;
  if (!options.log_file.empty()) {
    YADO_ASSIGN(log, os::open_path(options.log_file, O_WRONLY | O_APPEND | O_CREAT, 0600), doing);
    pass(log.get(), 1);
    pass(log.get(), 2);
  }
  for (const auto& [ours, theirs] : options.descriptors) pass(ours, theirs);

  YADO_TRY(send_message(control_, request, descriptors), doing);
  YADO_ASSIGN(auto reply, receive_message<SpawnReply>(control_), doing);
  if (!reply) return fail(Errc::unavailable, "{}: the host died meanwhile", doing);
  if (!reply->message.message.empty()) return fail(reply->message.error, "{}: {}", doing, reply->message.message);
  if (reply->descriptors.size() != 1) return fail(Errc::internal, "{}: init sent no pidfd", doing);
  YADO_ASSIGN(const pid_t pid, pid_of(reply->descriptors[0]), doing);
  return HostProcess(pid, std::move(reply->descriptors[0]), std::move(status.read));
}

void Machine::kill() {
  if (!init_.valid()) return;
  (void)init_.send(SIGKILL);
  control_.reset();
  // Init is gone when everything below it is. What dies frozen under the v1 freezer has to be thawed for it, and an
  // agent may have frozen one more in its last moment: hence the second look.
  for (;;) {
    thaw_tree(plan_.cgroup);
    const auto ended = init_.ended_within(20ms);
    if (!ended || *ended) break;
  }
  (void)init_.reap();
  init_ = os::Pidfd();
  remove_tree(plan_.cgroup);
}

}  // namespace yado::lab
