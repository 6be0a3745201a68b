#pragma once
// Starting a supervisor so that it outlives whoever started it.

#include <functional>
#include <string>
#include <vector>

#include "agent/supervisor/protocol.hpp"
#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::supervisor {

/// Descriptors of the new process, for the command line that calls `run`.
inline constexpr int network_descriptor = 3;  ///< the instance's network namespace; may be closed
inline constexpr int ready_descriptor = 4;

/// Writes <directory>/supervisor.json and starts `program` (an absolute path and its arguments; the path of the
/// configuration is appended) in a session of its own, as nobody's child. Returns when its socket answers.
/// Errors are the supervisor's own.
Status spawn_supervisor(const Config& config, int network_namespace, const std::vector<std::string>& program);

/// The same with a function in a forked copy instead of a program: for tests, from a process with one thread.
Status spawn_supervisor(const Config& config, int network_namespace, const std::function<int(os::Fd, os::Fd)>& body);

/// What `program` does: reads the configuration at `path` and runs with the two descriptors above.
int run_spawned(const std::string& path);

}  // namespace yado::supervisor
