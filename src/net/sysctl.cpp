#include "net/sysctl.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace yado::net {
namespace {

Status write(const Sysctl& setting) {
  const std::string path = fmt::format("/proc/sys/{}", setting.path);
  const os::Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid() && errno == ENOENT && setting.optional) return {};
  if (!file.valid() || ::write(file.get(), setting.value.data(), setting.value.size()) < 0)
    return fail_errno(fmt::format("set {} to {}", path, setting.value));
  return {};
}

}  // namespace

Status set_sysctls(const os::Netns& netns, std::initializer_list<Sysctl> settings) {
  // The kernel shows the opening thread's namespace below /proc/sys/net.
  return os::run_in(netns, [&]() -> Status {
    for (const Sysctl& setting : settings) YADO_TRY(write(setting), "kernel setting");
    return {};
  });
}

}  // namespace yado::net
