#include "os/clock.hpp"

#include <ctime>

namespace yado::os {
namespace {

nanoseconds read(clockid_t clock) {
  timespec value{};
  ::clock_gettime(clock, &value);
  return seconds(value.tv_sec) + nanoseconds(value.tv_nsec);
}

}  // namespace

Instant now() { return Instant(read(CLOCK_BOOTTIME)); }

std::int64_t wall_ms() { return std::chrono::duration_cast<milliseconds>(read(CLOCK_REALTIME)).count(); }

}  // namespace yado::os
