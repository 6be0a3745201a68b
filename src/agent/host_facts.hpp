#pragma once
// What an agent says of its host besides instances and images.

#include <cstdint>
#include <string>

namespace yado::agent {

/// The same for every agent process until the host is started anew. A lab host shares the machine's kernel: what is
/// new at its start is its process 1, so that is part of the id.
std::string boot_id();

struct HostLoad {
  std::uint64_t memory_free_bytes = 0;  ///< what could be used without swapping (MemAvailable)
  double load = 0;                      ///< runnable tasks per core, averaged over a minute
};
HostLoad host_load();

}  // namespace yado::agent
