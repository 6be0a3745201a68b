#pragma once
// "Start-up is complete", seen from outside: the application is not changed and has not been asked anything.

#include <cstdint>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/cgroup.hpp"
#include "os/pidfd.hpp"

namespace yado::container {

struct StartupTimes {
  nanoseconds listening{0};  ///< call -> a socket listens on the port, in the instance's network namespace
  nanoseconds settled{0};    ///< call -> its tasks sleep and its CPU time has stood still for the window below
  nanoseconds window{0};     ///< a quarter of `listening`: what still goes on after listening (workers that import
                             ///< the application) is in proportion to what went before
};

/// Waits until the instance listens on `port` and has settled. `already`: how long it has been starting before this
/// call. Errors: `application` when it exits first, `timed_out` after `limit`.
Result<StartupTimes> wait_startup(const os::Pidfd& first, const os::Cgroup& group, std::uint16_t port,
                                  nanoseconds already, nanoseconds limit);

}  // namespace yado::container
