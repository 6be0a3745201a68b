#pragma once
// pread(2) and pwrite(2) of all of it, through short transfers and EINTR.

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::image {

/// A short write is not the end: the next one says why.
Status write_at(const os::Fd& fd, std::span<const std::byte> data, std::uint64_t offset);
/// Less than all only at the end of the file.
Result<std::size_t> read_at(const os::Fd& fd, std::span<std::byte> buffer, std::uint64_t offset);

}  // namespace yado::image
