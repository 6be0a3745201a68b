#pragma once
// This machine's memory.

#include <cstdint>

namespace yado::os {

/// Bytes that could be used without swapping (MemAvailable, proc_meminfo(5)); 0: not known.
std::uint64_t memory_available();

}  // namespace yado::os
