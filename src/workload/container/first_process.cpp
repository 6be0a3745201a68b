#include "workload/container/first_process.hpp"

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.hpp"

// <sys/mount.h> and <linux/mount.h> define the same names in this libc.
extern "C" int mount(const char*, const char*, const char*, unsigned long, const void*) noexcept;
extern "C" int umount2(const char*, int) noexcept;

namespace yado::container {
namespace {

constexpr unsigned long no_suid = 2, no_dev = 4, no_exec = 8, bind = 4096, recursive = 16384, make_private = 1 << 18;
constexpr int detach_lazily = 2;

[[noreturn]] void give_up(const FirstProcess& plan, Errc code, const char* format, ...) {
  char text[1024];
  int length = std::snprintf(text, sizeof text, "%d:", static_cast<int>(code));
  va_list arguments;
  va_start(arguments, format);
  length += std::vsnprintf(text + length, sizeof text - static_cast<std::size_t>(length), format, arguments);
  va_end(arguments);
  if (length > static_cast<int>(sizeof text) - 1) length = sizeof text - 1;
  (void)!::write(plan.report, text, static_cast<std::size_t>(length));
  ::_exit(127);
}

[[noreturn]] void give_up_errno(const FirstProcess& plan, const char* doing) {
  const int number = errno;
  const Errc code = number == ENOSPC ? Errc::no_space : number == EPERM || number == EACCES ? Errc::permission : Errc::io;
  give_up(plan, code, "%s: %s", doing, std::strerror(number));
}

/// A directory of the root file system that is about to be covered: made when missing, refused when it is a link
/// that would lead the mount elsewhere.
void need_directory(const FirstProcess& plan, const char* name) {
  struct stat status {};
  if (::mkdir(name, 0755) == 0) return;
  if (::lstat(name, &status) != 0) give_up_errno(plan, name);
  if (!S_ISDIR(status.st_mode)) give_up(plan, Errc::invalid_argument, "/%s of the root file system is not a directory", name);
}

/// /dev is a directory of the overlay, not a tmpfs: CRIU saves and restores each tmpfs by running tar (3 ms or more).
void make_devices(const FirstProcess& plan) {
  need_directory(plan, "dev");
  for (const char* name : {"null", "zero", "full", "random", "urandom", "tty"}) {
    char outside[32], inside[32];
    std::snprintf(outside, sizeof outside, "/dev/%s", name);
    std::snprintf(inside, sizeof inside, "dev/%s", name);
    ::unlink(inside);  // a node that the root file system brought would not work: layers are mounted nodev
    const int file = ::open(inside, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    if (file < 0) give_up_errno(plan, inside);
    ::close(file);
    if (::mount(outside, inside, nullptr, bind, nullptr) != 0) give_up_errno(plan, outside);
  }
  need_directory(plan, "dev/shm");
  if (::mount("tmpfs", "dev/shm", "tmpfs", no_suid | no_dev, "mode=1777") != 0) give_up_errno(plan, "mount /dev/shm");
  const char* links[][2] = {{"/proc/self/fd", "dev/fd"},
                            {"/proc/self/fd/0", "dev/stdin"},
                            {"/proc/self/fd/1", "dev/stdout"},
                            {"/proc/self/fd/2", "dev/stderr"}};
  for (const auto& [to, name] : links) {
    ::unlink(name);
    if (::symlink(to, name) != 0) give_up_errno(plan, name);
  }
}

/// mkdir -p of the parents, then the target itself. Runs inside the new root: links cannot lead out of it.
void make_bind_target(const BindTarget& target) {
  char path[4096];
  std::snprintf(path, sizeof path, "%s", target.target.c_str());
  for (char* at = std::strchr(path + 1, '/'); at != nullptr; at = std::strchr(at + 1, '/')) {
    *at = 0;
    ::mkdir(path, 0755);
    *at = '/';
  }
  if (target.directory) {
    ::mkdir(path, 0755);
  } else if (const int file = ::open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644); file >= 0) {
    ::close(file);
  }
}

/// Docker's default set: what servers of the ordinary kind need, and nothing that reaches the kernel itself.
constexpr unsigned kept_capabilities[] = {CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FSETID,     CAP_FOWNER,
                                          CAP_MKNOD,  CAP_NET_RAW,      CAP_SETGID,     CAP_SETUID,
                                          CAP_SETFCAP, CAP_SETPCAP,     CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT,
                                          CAP_KILL,   CAP_AUDIT_WRITE};

void drop_capabilities(const FirstProcess& plan) {
  for (unsigned capability = 0; ::prctl(PR_CAPBSET_READ, capability) >= 0; ++capability) {
    bool keep = false;
    for (const unsigned kept : kept_capabilities) keep = keep || kept == capability;
    if (!keep && ::prctl(PR_CAPBSET_DROP, capability) != 0) give_up_errno(plan, "drop a capability");
  }
}

void find_and_exec(const FirstProcess& plan, char* const* arguments, char* const* environment) {
  const char* found = nullptr;
  for (const std::string& candidate : plan.search) {
    ::execve(candidate.c_str(), arguments, environment);
    const int number = errno;
    if (::access(candidate.c_str(), F_OK) != 0) continue;
    if (number == ENOENT)
      give_up(plan, Errc::not_found,
              "the command %s is there, but its interpreter (the #! line or the dynamic loader) is not in the root file system",
              candidate.c_str());
    if (number != EACCES) give_up(plan, Errc::invalid_argument, "the command %s cannot be run: %s", candidate.c_str(), std::strerror(number));
    found = candidate.c_str();
  }
  if (found != nullptr)
    give_up(plan, Errc::permission, "the command %s may not be executed by uid %u", found, plan.uid);
  give_up(plan, Errc::not_found, "the command %s is not in the root file system%s", plan.command[0].c_str(),
          plan.command[0].find('/') == std::string::npos ? " (searched in PATH)" : "");
}

}  // namespace

void become_program(FirstProcess& plan, char* const* arguments, char* const* environment) {
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);

  if (::chdir(plan.working_directory.c_str()) != 0)
    give_up(plan, errno == ENOENT || errno == ENOTDIR ? Errc::not_found : Errc::permission,
            "the working directory %s: %s", plan.working_directory.c_str(), std::strerror(errno));
  drop_capabilities(plan);
  if (::setgroups(0, nullptr) != 0 || ::setresgid(plan.gid, plan.gid, plan.gid) != 0 ||
      ::setresuid(plan.uid, plan.uid, plan.uid) != 0)
    give_up_errno(plan, "change to the uid and gid of the spec");
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) give_up_errno(plan, "no_new_privs");
  // After the change of ids, which clears it.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (plan.go >= 0) {
    pollfd supervisor{plan.go, POLLIN, 0};
    if (::poll(&supervisor, 1, 0) > 0 && (supervisor.revents & POLLHUP) != 0) ::_exit(127);
  }
  // Descriptors that were not made close-on-exec by somebody.
  ::syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */);
  const sock_fprog program{static_cast<unsigned short>(plan.system_calls.size()), plan.system_calls.data()};
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) give_up_errno(plan, "install the seccomp filter");
  find_and_exec(plan, arguments, environment);
  ::_exit(127);
}

void become_first_process(FirstProcess& plan, char* const* arguments, char* const* environment) {
  char byte;
  ssize_t got;
  do got = ::read(plan.go, &byte, 1);
  while (got < 0 && errno == EINTR);
  if (got != 1) ::_exit(127);

  if (::mount("none", "/", nullptr, recursive | make_private, nullptr) != 0) give_up_errno(plan, "make mounts private");
  // While this is still root outside: what lies in the way is private to root.
  if (::chdir(plan.root.c_str()) != 0 || ::mount(".", ".", nullptr, bind, nullptr) != 0 || ::chdir(plan.root.c_str()) != 0)
    give_up_errno(plan, "enter the root file system");
  int sources[64];
  if (plan.binds.size() > std::size(sources)) give_up(plan, Errc::invalid_argument, "more than 64 mounts");
  for (std::size_t i = 0; i < plan.binds.size(); ++i) {
    sources[i] = static_cast<int>(
        ::syscall(SYS_open_tree, AT_FDCWD, plan.binds[i].source.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    if (sources[i] < 0) give_up_errno(plan, plan.binds[i].source.c_str());
  }
  if (::setgroups(0, nullptr) != 0 || ::setresgid(0, 0, 0) != 0 || ::setresuid(0, 0, 0) != 0)
    give_up_errno(plan, "become root inside");
  ::umask(0);

  // A new /proc may be mounted only while the old one is in sight (mount_too_revealing() in the kernel).
  need_directory(plan, "proc");
  if (::mount("proc", "proc", "proc", no_suid | no_dev | no_exec, nullptr) != 0) give_up_errno(plan, "mount /proc");
  make_devices(plan);
  // The old root is stacked on the new one and taken away from there: no directory is needed for it (pivot_root(2)).
  if (::syscall(SYS_pivot_root, ".", ".") != 0) give_up_errno(plan, "pivot_root");
  if (::umount2(".", detach_lazily) != 0 || ::chdir("/") != 0) give_up_errno(plan, "leave the old root");
  ::umask(022);
  for (std::size_t i = 0; i < plan.binds.size(); ++i) {
    make_bind_target(plan.binds[i]);
    if (::syscall(SYS_move_mount, sources[i], "", AT_FDCWD, plan.binds[i].target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0)
      give_up_errno(plan, plan.binds[i].target.c_str());
    ::close(sources[i]);
  }

  // CRIU wants the first process to lead a session inside its own pid namespace.
  ::setsid();
  (void)::sethostname(plan.host_name.c_str(), plan.host_name.size());
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || ::dup2(null, 0) < 0 || ::dup2(plan.output, 1) < 0 || ::dup2(plan.output, 2) < 0)
    give_up_errno(plan, "standard input and output");
  become_program(plan, arguments, environment);
}

}  // namespace yado::container
