#pragma once
// The guest's file systems written out and at rest for the moment of a cut, by its agent: then a disk of the image is one
// that was unmounted, nearly, also for who uses it without the memory. Only a guest with an agent can do so; whatever it
// does not do, or not soon, is done without, and nothing here fails.

#include <functional>
#include <optional>
#include <utility>

#include "base/time.hpp"
#include "os/fd.hpp"
#include "workload/vm/guest_agent.hpp"
#include "workload/vm/qmp.hpp"

namespace yado::vm {

/// Whether somebody in the guest has opened the agent's port. Asks QEMU alone.
Result<bool> agent_port_is_open(Qmp& qmp, nanoseconds limit);

/// Destruction thaws. Belongs to one thread.
class FrozenDisks {
 public:
  FrozenDisks() = default;
  FrozenDisks(FrozenDisks&& other) noexcept : agent_(std::move(other.agent_)), asked_(std::exchange(other.asked_, false)) {}
  FrozenDisks& operator=(FrozenDisks&&) = delete;
  ~FrozenDisks() { thaw(); }

  /// Long before the cut: the first answer of an agent takes some 100 ms. `connect`: to its port.
  static FrozenDisks prepare(Qmp& qmp, const std::function<Result<os::Fd>()>& connect, nanoseconds limit);
  /// True when they are at rest. The guest must run.
  bool freeze();
  /// The guest must run again. What is frozen and cannot be thawed stays so, and is in the log.
  void thaw();

 private:
  std::optional<GuestAgent> agent_;
  bool asked_ = false;  ///< they are frozen, or may be at any moment
};

}  // namespace yado::vm
