#pragma once
// Starting a supervisor so that it outlives whoever started it.

#include <functional>
#include <string>
#include <vector>

#include "agent/supervisor/protocol.hpp"
#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::supervisor {

/// A supervisor that waits to be told whose it is: exec and dynamic linking are behind it (some 10 ms on a busy host).
/// In a session of its own, as nobody's child. It ends when this object goes without having told it.
class Spare {
 public:
  /// `program`: an absolute path and its arguments; it calls run_spawned(). `network`: the instance's network
  /// namespace, -1: the caller's.
  static Result<Spare> make(int network, const std::vector<std::string>& program);

  /// False when it has ended, or could not be executed: become() says why.
  bool waits() const;

  /// Before become(): an instance will come from another host (workload::Driver::expect). Returns when everything is ready for it. The
  /// configuration is that of become() as far as it is known.
  Status expect(const Config& config) const;

  /// Writes <directory>/supervisor.json. Returns when the supervisor's socket answers; errors are the supervisor's own.
  Status become(const Config& config) &&;

 private:
  os::Fd order_;  ///< the path of the configuration goes in here
  os::Fd ready_;
};

/// What `program` does: waits for the path of its configuration and runs. The exit status of the process.
int run_spawned();

/// The same without a program, `body` in a forked copy of this process: for tests, from a process with one thread.
/// `network` and `ready` as in supervisor::run.
Status spawn_forked(const Config& config, int network, const std::function<int(os::Fd network, os::Fd ready)>& body);

}  // namespace yado::supervisor
