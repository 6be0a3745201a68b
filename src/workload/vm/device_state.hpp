#pragma once
// The state of a guest without its memory: vCPUs and devices, by QEMU's own migration with x-ignore-shared, through a
// socket. 40 to 300 KB. The guest must stand still (QMP `stop`), and its memory be a shared file.

#include <cstdint>
#include <filesystem>
#include <utility>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "workload/vm/qmp.hpp"

namespace yado::vm {

/// Into a new file. Destruction without a successful save() removes it, and the guest can go on. Errors: `no_space`, `timed_out`,
/// `application`, QEMU's own.
class DeviceStateSaving {
 public:
  /// While the guest still runs: what QEMU can be told before. `qmp` outlives this.
  static Result<DeviceStateSaving> prepare(Qmp& qmp, const std::filesystem::path& file, nanoseconds limit);
  DeviceStateSaving(DeviceStateSaving&& other) noexcept
      : qmp_(other.qmp_), path_(std::exchange(other.path_, {})), file_(std::move(other.file_)), stream_(std::move(other.stream_)) {}
  ~DeviceStateSaving();

  /// Once, while it stands still; returns the file's length. Block devices are written out and at rest afterwards, until `cont`.
  Result<std::uint64_t> save(nanoseconds limit);

 private:
  DeviceStateSaving(Qmp& qmp, std::filesystem::path path, os::Fd file) : qmp_(&qmp), path_(std::move(path)), file_(std::move(file)) {}
  Qmp* qmp_;
  std::filesystem::path path_;  ///< empty: nothing to remove
  os::Fd file_, stream_;        ///< QEMU has the other end of the stream
};

/// Into a QEMU that was started with `-incoming defer`. A state that QEMU refuses is `corrupt`, and that QEMU
/// of no more use: some versions end by it, with their reason on standard error.
Status load_device_state(Qmp& qmp, const std::filesystem::path& file, nanoseconds limit);

/// `cont`. Waits before for a migration to let go of the guest: a `cont` in between would abort QEMU 7.2.
Status resume(Qmp& qmp, nanoseconds limit);

/// QEMU's run state: "running", "paused", "postmigrate", …
Result<std::string> run_state(Qmp& qmp, nanoseconds limit);

}  // namespace yado::vm
