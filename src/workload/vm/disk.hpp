#pragma once
// Disks as files: a base image that is never written, and a qcow2 overlay per instance with what the instance wrote.

#include <filesystem>
#include <string_view>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "workload/vm/spec.hpp"

namespace yado::vm {

enum class DiskFormat { raw, qcow2 };
std::string_view name_of(DiskFormat format);

/// By the file's first bytes, once, of a base image only: QEMU must never guess, because a guest with a raw disk could
/// write a qcow2 header into it that names any file of the host. Error `not_found`.
Result<DiskFormat> format_of(const std::filesystem::path& base);

/// A new, empty overlay, as large as its base. Replaces nothing: `already_exists`.
Status make_overlay(const Qemu& qemu, const std::filesystem::path& base, const std::filesystem::path& overlay);

/// A copy in a new file: shared extents where the file system can (reflink), else as copy_sparse. Error `no_space`; on any
/// error nothing is left at `to`.
Status copy_disk(const std::filesystem::path& from, const std::filesystem::path& to);

/// Data at the same offsets, holes and pages of zeros as holes, the same length.
Status copy_sparse(const os::Fd& from, const os::Fd& to);

}  // namespace yado::vm
