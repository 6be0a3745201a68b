#pragma once
// For a workload's process that somebody else starts (libvirt): its hook comes to a socket with a name.

#include <filesystem>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::pager {

/// Makes the socket (0600; in place of one that is left there), waits until a hook connects, and removes it. What the process's environment says is
/// YADO_PAGES_PAGER=<path> (hook/pages_hook.c).
Result<os::Fd> wait_for_hook(const std::filesystem::path& path);

/// run_service (service.hpp) for the first that connects; what goes wrong is said on standard error.
int run_service_at(const std::filesystem::path& hook_socket, const std::filesystem::path& config);

}  // namespace yado::pager
