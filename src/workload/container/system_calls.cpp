#include "workload/container/system_calls.hpp"

#include <cerrno>
#include <memory>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <seccomp.h>

#include "os/fd.hpp"

namespace yado::container {
namespace {

/// A deny-list in the spirit of Docker's profile. The user namespace and the capability set refuse most of these
/// already; the filter stands in front of the code paths that had the holes.
constexpr const char* denied[] = {
    // the machine
    "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff",
    "iopl", "ioperm", "acct", "quotactl", "quotactl_fd", "syslog", "vhangup", "settimeofday", "clock_settime",
    "clock_adjtime", "adjtimex", "nfsservctl", "lookup_dcookie", "sysfs", "ustat", "uselib", "_sysctl", "vm86", "vm86old",
    // file systems and namespaces
    "mount", "umount", "umount2", "pivot_root", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "setns", "open_by_handle_at", "name_to_handle_at",
    // doors into the kernel with a history
    "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "kcmp", "io_uring_setup",
    "io_uring_enter", "io_uring_register", "process_madvise", "fanotify_init"};

}  // namespace

Result<std::vector<sock_filter>> default_system_calls() {
  const std::unique_ptr<void, decltype(&seccomp_release)> filter(seccomp_init(SCMP_ACT_ALLOW), &seccomp_release);
  if (!filter) return fail(Errc::internal, "seccomp_init failed");
  // System calls of another architecture (32 bit) would go past the list.
  int failed = seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
  for (const char* name : denied) {
    const int number = seccomp_syscall_resolve_name(name);
    // Negative: a call of another architecture, or newer than the library.
    if (number >= 0 && failed == 0) failed = seccomp_rule_add(filter.get(), SCMP_ACT_ERRNO(EPERM), number, 0);
  }
  // clone with a new namespace; clone3 hides its flags in memory where a filter cannot look.
  for (const unsigned flag : {CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWCGROUP})
    if (failed == 0)
      failed = seccomp_rule_add(filter.get(), SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
                                SCMP_A0(SCMP_CMP_MASKED_EQ, flag, flag));
  if (failed == 0) failed = seccomp_rule_add(filter.get(), SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  if (failed != 0) return fail_errno(-failed, "build the seccomp filter");

  const os::Fd file(::memfd_create("seccomp", MFD_CLOEXEC));
  if (!file.valid()) return fail_errno("memfd_create");
  if (const int error = seccomp_export_bpf(filter.get(), file.get()); error != 0)
    return fail_errno(-error, "export the seccomp filter");
  const off_t bytes = ::lseek(file.get(), 0, SEEK_END);
  std::vector<sock_filter> program(static_cast<std::size_t>(bytes) / sizeof(sock_filter));
  if (::pread(file.get(), program.data(), static_cast<std::size_t>(bytes), 0) != bytes) return fail_errno("read the seccomp filter");
  return program;
}

}  // namespace yado::container
