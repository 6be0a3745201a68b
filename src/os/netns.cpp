#include "os/netns.hpp"

#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <system_error>
#include <thread>

namespace yado::os {
namespace {

/// /proc/thread-self: a thread that called setns() is not where /proc/self says.
constexpr const char* current_path = "/proc/thread-self/ns/net";

/// A thread that changed its namespace is thrown away, not changed back: there is no way to fail half-way.
Status on_own_thread(const std::function<void()>& body) {
  try {
    std::thread(body).join();
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start a thread for a network namespace");
  }
  return {};
}

}  // namespace

Result<Netns> Netns::create() {
  Result<Netns> made;
  YADO_TRY(on_own_thread([&] {
             if (::unshare(CLONE_NEWNET) < 0) {
               made = fail_errno("create a network namespace (needs root)");
               return;
             }
             made = current();
           }),
           "create a network namespace");
  return made;
}

Result<Netns> Netns::current() { return open(current_path); }

Result<Netns> Netns::of_process(pid_t pid) { return open(fmt::format("/proc/{}/ns/net", pid)); }

Result<Netns> Netns::open(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail_errno(fmt::format("open network namespace {}", path));
  if (::ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET)
    return fail(Errc::invalid_argument, "{} is not a network namespace", path);
  return Netns(std::move(fd));
}

Result<std::uint64_t> Netns::inode() const {
  struct stat info {};
  if (::fstat(fd_.get(), &info) < 0) return fail_errno("fstat of a network namespace");
  return info.st_ino;
}

Result<Netns> Netns::duplicate() const {
  Fd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return fail_errno("duplicate a network namespace");
  return Netns(std::move(copy));
}

Status Netns::enter() const {
  if (::setns(fd_.get(), CLONE_NEWNET) < 0) return fail_errno("enter a network namespace");
  return {};
}

Status run_inside(const Netns& netns, const std::function<void()>& body) {
  Status entered;
  YADO_TRY(on_own_thread([&] {
             entered = netns.enter();
             if (entered) body();
           }),
           "run in a network namespace");
  return entered;
}

}  // namespace yado::os
