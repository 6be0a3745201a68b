#include "agent/host_facts.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "image/checksum.hpp"
#include "os/file.hpp"
#include "os/memory.hpp"

namespace yado::agent {

std::string boot_id() {
  image::Checksum sum;
  sum.add_field(os::read_text("/proc/sys/kernel/random/boot_id").value_or(""));
  std::error_code ignored;
  sum.add_field(std::filesystem::read_symlink("/proc/self/ns/pid", ignored).native());
  // proc_pid_stat(5): the start time is the 22nd field, the 20th after the command in its parentheses.
  const std::string stat = os::read_text("/proc/1/stat").value_or("");
  std::size_t at = stat.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  if (at != std::string::npos) sum.add_field(stat.substr(at + 1, stat.find(' ', at + 1) - at - 1));
  return sum.hex();
}

HostLoad host_load() {
  HostLoad found;
  found.memory_free_bytes = os::memory_available();
  const std::string load = os::read_text("/proc/loadavg").value_or("0");
  found.load = std::strtod(load.c_str(), nullptr) / std::max(1u, std::thread::hardware_concurrency());
  return found;
}

}  // namespace yado::agent
