#include "os/memory.hpp"

#include <cstdlib>
#include <string>

#include "os/file.hpp"

namespace yado::os {

std::uint64_t memory_available() {
  const std::string memory = read_text("/proc/meminfo").value_or("");
  constexpr std::string_view key = "MemAvailable:";
  const std::size_t at = memory.find(key);
  return at == std::string::npos ? 0 : std::strtoull(memory.c_str() + at + key.size(), nullptr, 10) * 1024;
}

}  // namespace yado::os
