#pragma once
// What a virtual machine is made of, and where it runs: values.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/time.hpp"
#include "net/address.hpp"
#include "workload/vm/accelerator.hpp"
#include "workload/vm/paging.hpp"

namespace yado::vm {

struct VmSpec {
  std::string name;                          ///< shown by ps(1)
  std::filesystem::path kernel;              ///< empty: the firmware boots from the first disk
  std::filesystem::path initramfs;           ///< may be empty
  std::string kernel_command_line;           ///< `console=ttyS0` is what the console shows
  std::uint64_t memory_bytes = 0;            ///< a multiple of 2 MiB
  unsigned vcpus = 1;
  std::vector<std::filesystem::path> disks;  ///< base images, raw or qcow2, never written: /dev/vda, /dev/vdb, …
  std::optional<net::Mac> mac;               ///< with it, a network card on the place's bridge
  bool dhcp = false;                         ///< the guest asks for its address, and is answered on the place's bridge (dhcp.hpp)
  double cpus = 0;                           ///< share of the host's; 0: no limit
};

/// What the agent prepared for one instance.
struct Place {
  std::filesystem::path directory;  ///< exists; absolute; nobody else's: holds the disk overlays and the monitor's socket
  std::string cgroup;               ///< relative name, "yado/bigvm.4"
  int network_namespace = -1;       ///< where the bridge is; stays the caller's; -1: the caller's own
  std::string bridge;               ///< empty: the network card is connected to nothing yet
  std::optional<Paging> paging;     ///< the guest's memory is paged: a share here, the rest on other hosts
};

/// The programs, and their bound.
struct Qemu {
  std::filesystem::path system = "/usr/bin/qemu-system-x86_64";  ///< 7.2 or later
  std::filesystem::path image_tool = "/usr/bin/qemu-img";
  std::filesystem::path dhcp_server = "/usr/sbin/dnsmasq";  ///< only where VmSpec::dhcp
  AcceleratorChoice accelerator;         ///< choose_accelerator()
  nanoseconds limit = 30s;               ///< the longest that one answer of QEMU may take
};

}  // namespace yado::vm
