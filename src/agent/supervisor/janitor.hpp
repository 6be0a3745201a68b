#pragma once
// A process that does nothing but outlive the supervisor by a moment. When the supervisor is killed, its container
// dies with it (PR_SET_PDEATHSIG) — but not what is frozen by a v1 freezer, nor what `exec` had started, and cgroup
// directories and the socket's file would stay.

#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "os/process.hpp"

namespace yado::supervisor {

/// Watches the calling process. Destroying the returned value ends the watch; call it early, before anything is made.
Result<os::Process> start_janitor(const std::string& cgroup, const std::filesystem::path& socket);

}  // namespace yado::supervisor
