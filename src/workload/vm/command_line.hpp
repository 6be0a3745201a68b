#pragma once
// QEMU's command line: a pure function of what is wanted. Everything that QEMU needs from us it inherits as a
// descriptor with a fixed number, so that it opens nothing but disks, kernel and initramfs, and no name is left behind.

#include <string>
#include <vector>

#include "base/error.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/spec.hpp"

namespace yado::vm {

/// Descriptor numbers in QEMU.
inline constexpr int monitor_descriptor = 3;  ///< our own monitor: a connected socket whose end means QEMU's end
inline constexpr int control_descriptor = 4;  ///< a second monitor: a listening socket, one client at a time
inline constexpr int console_descriptor = 5;  ///< the serial port: a connected socket
inline constexpr int memory_descriptor = 6;   ///< the guest's memory: a shared file, by which a preloaded hook knows its mmap(2)
inline constexpr int tap_descriptor = 7;
inline constexpr int pager_descriptor = 8;    ///< of the hook: to the pager
inline constexpr int hook_descriptor = 9;     ///< the hook's library, preloaded
inline constexpr int agent_descriptor = 10;   ///< to the guest's agent: a listening socket, one client at a time

/// Of the character device behind which the guest's agent is.
inline constexpr const char* agent_device = "agent";

struct CommandLine {
  const VmSpec& spec;
  const Qemu& qemu;
  std::string machine;                           ///< "q35", or the exact version of an image's
  std::vector<DiskFormat> base_formats;          ///< of spec.disks
  std::vector<std::vector<std::filesystem::path>> layers;  ///< of spec.disks, oldest first
  bool network_card = false;
  bool incoming = false;                         ///< wait for a device state instead of starting at the firmware
};

/// argv. The guest stands still until `cont`.
std::vector<std::string> build(const CommandLine& call);

/// What is wrong with a spec, in words: `invalid_argument`, or `not_found` for a file that is missing.
Status check(const VmSpec& spec);

}  // namespace yado::vm
