#pragma once
// Which stretches of a sparse file are data (lseek(2), SEEK_DATA). A file system that knows no holes says: all of it.

#include <cstdint>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::image {

/// The bytes [first, end).
struct Extent {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
  std::uint64_t bytes() const { return end - first; }
  bool empty() const { return first == end; }
  bool operator==(const Extent&) const = default;
};

/// The next data at or after `from` and before `end`; {end, end} when only holes follow. Leaves the file's position
/// anywhere.
Result<Extent> next_data(const os::Fd& file, std::uint64_t from, std::uint64_t end);

}  // namespace yado::image
