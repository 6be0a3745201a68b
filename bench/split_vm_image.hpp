#pragma once
// A checkpoint of a split VM as `yado` and the agents take it, without an agent: every host saves what it holds, at once, while the guest runs.

#include <string>
#include <vector>

#include "split_vm_hosts.hpp"
#include "workload/vm/vm.hpp"

namespace yado::bench {

/// Parts on the main host's disk, shares in the stores of the others.
struct SplitImage {
  std::string name;
  image::CutId cut;
  vm::Saved saved;
  std::vector<vm::MemoryShare> shares;
  std::filesystem::path directory;  ///< with the parts device-state, disk and memory
};

/// Returns when everything is on the disks. A guest that stands still goes on standing still. `base`: only what changed since; null: all of it.
Result<SplitImage> take_image(const vm::Vm& vm, const WorkDirectories& work, const std::string& name, const SplitImage* base);

}  // namespace yado::bench
