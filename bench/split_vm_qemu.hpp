#pragma once
// An ordinary VM for the conventional variants: QEMU with the driver's own command line, and its migration into a file. The driver
// itself (workload/vm) saves in no conventional way, so it cannot be asked.

#include <memory>
#include <string>
#include <vector>

#include "os/cgroup.hpp"
#include "os/process.hpp"
#include "workload/vm/console.hpp"
#include "workload/vm/paging.hpp"
#include "workload/vm/qmp.hpp"
#include "workload/vm/spec.hpp"

namespace yado::bench {

class OrdinaryVm {
 public:
  enum class Begin { boot, incoming };  ///< from the firmware, or waiting for `migrate-incoming`; standing still both
  /// In `cgroup` (relative to the root of every hierarchy). QEMU dies with the calling thread. With a pager, which outlives this
  /// object, the guest's memory is split.
  static Result<std::unique_ptr<OrdinaryVm>> start(const vm::VmSpec& spec, const vm::Qemu& qemu, const std::string& cgroup, Begin begin,
                                                   vm::PagerProcess* pager = nullptr);
  ~OrdinaryVm();
  OrdinaryVm(const OrdinaryVm&) = delete;

  vm::Qmp& monitor() { return *monitor_; }
  vm::Console& console() { return console_; }
  Result<std::string> execute(const std::string& command, const std::string& arguments = "{}") { return monitor_->execute(command, arguments, limit_); }
  /// Gives QEMU a file under a name, for a migration's `fd:NAME`.
  Status hand_over(const os::Fd& file, const std::string& name);
  /// Waits until a migration, either way, is completed. `conflict` with QEMU's reason when it fails. When QEMU begins pass
  /// number `last_pass` + 1 (0: no bound) the guest is stopped, which makes that pass the last.
  Status wait_migrated(int last_pass = 0);

 private:
  OrdinaryVm() = default;
  nanoseconds limit_{0};
  os::Fd memory_;
  std::unique_ptr<vm::Qmp> monitor_;
  vm::Console console_;
  os::Fd words_;  ///< QEMU's standard error
  os::Cgroup cgroup_;
  os::Process process_;
};

}  // namespace yado::bench
