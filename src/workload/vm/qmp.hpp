#pragma once
// One connection to a monitor of QEMU: the QEMU Machine Protocol (docs/interop/qmp-spec.txt of QEMU).
//
//   QEMU                                     we
//   ── {"QMP": {"version": …}} ────────────▶           greeting
//   ◀──────────── {"execute": "qmp_capabilities", "id": 0} ──
//   ── {"return": {}, "id": 0} ────────────▶
//   ◀──────────── {"execute": "stop", "id": 1} ──
//   ── {"event": "STOP", …} ───────────────▶           at any time, also between a command and its answer
//   ── {"return": {}, "id": 1} ────────────▶           or {"error": {"class", "desc"}, "id": 1}
//
// The end of the stream means that QEMU has ended. Belongs to one thread.
//
// Errors: `application` QEMU has ended, or ended the connection; `timed_out` no answer within the limit (the connection
// can still be used: a late answer is thrown away); `corrupt` that was no QMP, nothing more is read; QEMU's own errors
// with its words: `unsupported` (CommandNotFound), `not_found` (DeviceNotFound), `conflict` (DeviceNotActive), else `io`.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/fd.hpp"

namespace yado::vm {

struct QmpEvent {
  std::string name;  ///< "STOP", "GUEST_PANICKED"
  std::string data;  ///< a JSON object, "{}" when there is none
  std::chrono::microseconds at{0};  ///< by QEMU's clock, since 1970
};

struct QemuVersion {
  int major = 0, minor = 0, micro = 0;
  auto operator<=>(const QemuVersion&) const = default;
};

class Qmp {
 public:
  /// Takes a connected stream socket, reads the greeting and leaves negotiation mode.
  static Result<Qmp> open(os::Fd socket, nanoseconds limit);
  Qmp(Qmp&&) noexcept = default;
  Qmp& operator=(Qmp&&) noexcept = default;

  /// Readable when there is something to read, an event or the end.
  int fd() const { return socket_.get(); }
  const QemuVersion& version() const { return version_; }

  /// `arguments` is a JSON object; returns the JSON text of `return`. Events that come meanwhile are kept. `descriptor`
  /// is sent along (for `getfd`); it stays the caller's.
  Result<std::string> execute(std::string_view command, std::string_view arguments, nanoseconds limit, int descriptor = -1);
  /// The oldest event that was not taken yet; none when `limit` passes without one. With limit 0 nothing is waited for.
  Result<std::optional<QmpEvent>> next_event(nanoseconds limit);

 private:
  explicit Qmp(os::Fd socket) : socket_(std::move(socket)) {}
  Status negotiate(nanoseconds limit);
  Status send(std::string_view line, int descriptor, Instant deadline);
  /// Waits until something has come and takes it in; false when the deadline passed before.
  Result<bool> receive(Instant deadline);
  Status take(std::string_view line);

  struct Answer {
    std::string result, error_class, error_text;
  };

  os::Fd socket_;
  QemuVersion version_;
  bool greeted_ = false;
  std::string buffer_;  ///< the beginning of a line
  std::uint64_t asked_ = 0;
  std::optional<Answer> answer_;  ///< to the last command
  std::deque<QmpEvent> events_;
  std::optional<Error> broken_;
};

}  // namespace yado::vm
