#pragma once
// One connection to the agent inside a guest: qemu-guest-agent at the virtio-serial port org.qemu.guest_agent.0
// (docs/interop/qemu-ga-ref of QEMU). Lines of JSON like QMP's, but without a greeting and without ids, and the stream is
// not cut when a client goes: whatever the client before had asked may still be answered. So every connection begins with
//
//   we    ── \xff {"execute": "guest-sync-delimited", "arguments": {"id": <random>}} ──▶
//   agent ◀── … \xff {"return": <the same id>} ──             all before it is somebody else's
//
// QEMU serves one client at a time, others queue; a connection is best given back soon. A guest says what it likes and
// when it likes: every call has a limit, and an answer is bounded. Belongs to one thread.
//
// Errors: `unavailable` no answer within the limit: no agent, or one that hangs. After that, or after nonsense (`corrupt`),
// nothing but `synchronize` can be called. `application` QEMU has ended. The agent's own errors with its words: `unsupported`, else `io`.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/fd.hpp"
#include "os/pidfd.hpp"

namespace yado::vm {

class GuestAgent {
 public:
  /// Takes a connected stream socket and synchronizes.
  static Result<GuestAgent> open(os::Fd socket, nanoseconds limit);

  /// `arguments` is a JSON object; the JSON text of `return`.
  Result<std::string> execute(std::string_view command, std::string_view arguments, nanoseconds limit);
  Status synchronize(nanoseconds limit);

  /// The guest's clock (and its battery-backed one).
  Status set_time(std::int64_t wall_ns, nanoseconds limit);
  Result<std::int64_t> time(nanoseconds limit);
  /// Writes out and stops all writing to its file systems: how many. Until thaw_disks the agent takes hardly another command.
  Result<int> freeze_disks(nanoseconds limit);
  /// Harmless when none is frozen. How many were.
  Result<int> thaw_disks(nanoseconds limit);

 private:
  explicit GuestAgent(os::Fd socket) : socket_(std::move(socket)) {}
  Status send(std::string_view text, Instant deadline);
  /// A line's content, without what precedes a \xff in it.
  Result<std::string> receive(Instant deadline);

  os::Fd socket_;
  std::string buffer_;
  bool in_step_ = false;
};

struct GuestRun {
  os::ExitStatus status;
  std::string output;  ///< standard output, then standard error
};

/// Runs a program in the guest, until it ends. Asks by connections of its own, so that others get at the agent meanwhile.
/// `connect` makes one; `wait` waits as long as it is told, unless the VM ends: then its error is the result.
Result<GuestRun> run_in_guest(const std::function<Result<GuestAgent>()>& connect, const std::function<Status(nanoseconds)>& wait,
                              const std::vector<std::string>& command, nanoseconds limit);

}  // namespace yado::vm
