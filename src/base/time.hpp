#pragma once
// Time as the cores see it: it comes in as an argument and nowhere else.

#include <chrono>
#include <cstdint>

namespace yado {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using namespace std::chrono_literals;

/// CLOCK_BOOTTIME: goes on while the machine is suspended, which is why leases are measured by it
/// (clock_gettime(2)). It has no now(): the shell reads it (os/clock.hpp), the simulation makes it up.
struct BootClock {
  using duration = nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  static constexpr bool is_steady = true;
  using time_point = std::chrono::time_point<BootClock>;
};

using Instant = BootClock::time_point;

constexpr double to_ms(nanoseconds duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

}  // namespace yado
