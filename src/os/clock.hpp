#pragma once
#include "base/time.hpp"

namespace yado::os {

/// CLOCK_BOOTTIME.
Instant now();
/// Milliseconds since 1970: for records that people read and for nothing that decides.
std::int64_t wall_ms();

}  // namespace yado::os
