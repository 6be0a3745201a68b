#pragma once
// The state of a guest without its memory: vCPUs and devices, by QEMU's own migration with x-ignore-shared, through a
// socket. 40 to 300 KB. The guest must stand still (QMP `stop`), and its memory be a shared file.

#include <cstdint>
#include <filesystem>

#include "base/error.hpp"
#include "workload/vm/qmp.hpp"

namespace yado::vm {

/// Into a new file; returns its length. Block devices are written out and at rest afterwards, until `cont`. On an error
/// no file is left, and the guest can go on. Errors: `no_space`, `timed_out`, `application`, QEMU's own.
Result<std::uint64_t> save_device_state(Qmp& qmp, const std::filesystem::path& file, nanoseconds limit);

/// Into a QEMU that was started with `-incoming defer`. A state that QEMU refuses is `corrupt`, and that QEMU
/// of no more use: some versions end by it, with their reason on standard error.
Status load_device_state(Qmp& qmp, const std::filesystem::path& file, nanoseconds limit);

/// `cont`. Waits before for a migration to let go of the guest: a `cont` in between would abort QEMU 7.2.
Status resume(Qmp& qmp, nanoseconds limit);

/// QEMU's run state: "running", "paused", "postmigrate", …
Result<std::string> run_state(Qmp& qmp, nanoseconds limit);

}  // namespace yado::vm
