#pragma once
// How a benchmark on the rig leaves nothing on this machine, by Ctrl-C or by kill -9 of the part that measures:
//
//   this process      holds what must not be left: disks, and whatever orphans there are; one thread
//     └─ measure()    a child, in which everything else happens. It may die of anything, at any time.

#include <functional>
#include <memory>

#include "os/clock.hpp"
#include "split_vm_rig.hpp"

namespace yado::bench {

/// "[ 12.3 s] …"
class Progress {
 public:
  void operator()(const std::string& line) const;

 private:
  Instant begun_ = os::now();
};

/// What else of the machine the child uses: taken in this process before the child starts, given back by the destructor after its end.
struct Held {
  virtual ~Held() = default;
};
using Hold = std::function<Result<std::unique_ptr<Held>>()>;

/// Runs `measure` in a child of its own with the rig's disks: its exit status, or 128 + the signal that interrupted it. Only from a
/// process with one thread. Sweeps first what a run has left that was killed with its supervisor. Error `already_exists` when
/// another benchmark is running.
Result<int> supervise(const RigOptions& options, const Hold& hold, const std::function<int(const RigDisks&, Held*)>& measure);

}  // namespace yado::bench
