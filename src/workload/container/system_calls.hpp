#pragma once
// The default seccomp profile: everything a server needs, nothing that changes the machine.

#include <vector>

#include <linux/filter.h>

#include "base/error.hpp"

namespace yado::container {

/// A BPF program for PR_SET_SECCOMP. Refused calls get EPERM (clone3: ENOSYS, so that libc falls back to clone).
Result<std::vector<sock_filter>> default_system_calls();

}  // namespace yado::container
