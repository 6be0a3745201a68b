#pragma once
// The state of a guest without its memory: vCPUs and devices, by QEMU's own migration with x-ignore-shared, through a
// socket. 40 to 300 KB. Its memory must be a shared file.
//
//   prepare ─── begin ───────────────────── collect ──────────────── finish ─── resume
//   runs        QEMU sets everything up,    devices, stands still    stands     runs
//               then stops it and waits                              still
//
// QEMU's own setup takes longer than the devices (6 ms of 9 with 4 GiB of memory): so it is QEMU that stops the guest, when that is done
// (capability pause-before-switchover). A migration that fails or is cancelled after that has QEMU start the guest again by itself.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <future>
#include <utility>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "workload/vm/qmp.hpp"

namespace yado::vm {

/// Into a new file. Destruction is abandon(). Errors: `no_space`, `timed_out`,
/// `application`, QEMU's own.
class DeviceStateSaving {
 public:
  /// While the guest still runs: what QEMU can be told before. `qmp` outlives this.
  static Result<DeviceStateSaving> prepare(Qmp& qmp, const std::filesystem::path& file, nanoseconds limit);
  /// Before begin().
  DeviceStateSaving(DeviceStateSaving&& other) noexcept
      : qmp_(other.qmp_), path_(std::exchange(other.path_, {})), file_(std::move(other.file_)), stream_(std::move(other.stream_)) {}
  ~DeviceStateSaving() { abandon(); }

  /// When this returns the guest stands still: since when, by QEMU's clock; 0: since before.
  Result<std::chrono::microseconds> begin(nanoseconds limit);
  /// Everything of the devices; returns the file's length.
  Result<std::uint64_t> collect(nanoseconds limit);
  /// After a collect() that succeeded. Block devices are written out and at rest afterwards, until `cont`.
  Status finish(nanoseconds limit);
  /// No file, and a guest that ran before runs again, or may be continued. After finish() nothing.
  void abandon();

 private:
  DeviceStateSaving(Qmp& qmp, std::filesystem::path path, os::Fd file) : qmp_(&qmp), path_(std::move(path)), file_(std::move(file)) {}
  Qmp* qmp_;
  std::filesystem::path path_;  ///< empty: nothing to remove
  os::Fd file_, stream_;        ///< QEMU has the other end of the stream
  bool holds_ = false;          ///< QEMU's migration has begun and is not known to be over
  bool waits_ = false;          ///< it stopped the guest and waits for collect()
  std::future<Result<std::uint64_t>> file_bytes_;  ///< what comes is taken from the beginning on: QEMU writes under its big lock, and would answer nobody
};

/// Into a QEMU that was started with `-incoming defer`. A state that QEMU refuses is `corrupt`, and that QEMU
/// of no more use: some versions end by it, with their reason on standard error.
Status load_device_state(Qmp& qmp, const std::filesystem::path& file, nanoseconds limit);

/// `cont`. Waits before for a migration to let go of the guest: a `cont` in between would abort QEMU 7.2. One that waits for somebody who saves (and was
/// killed, perhaps) is cancelled.
Status resume(Qmp& qmp, nanoseconds limit);

/// QEMU's run state: "running", "paused", "postmigrate", …
Result<std::string> run_state(Qmp& qmp, nanoseconds limit);

}  // namespace yado::vm
