#include "image/extents.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "image/pass.hpp"

namespace yado::image {
namespace {

Result<std::uint64_t> seek(const os::Fd& file, std::uint64_t from, int what, std::uint64_t end) {
  const off_t found = ::lseek(file.get(), static_cast<off_t>(from), what);
  if (found < 0 && errno == ENXIO) return end;
  if (found < 0) return fail_errno("seek");
  return std::min(static_cast<std::uint64_t>(found), end);
}

}  // namespace

Result<Extent> next_data(const os::Fd& file, std::uint64_t from, std::uint64_t end) {
  if (from >= end) return Extent{end, end};
  YADO_TAKE(const std::uint64_t first, seek(file, from, SEEK_DATA, end));
  if (first == end) return Extent{end, end};
  YADO_TAKE(const std::uint64_t last, seek(file, first, SEEK_HOLE, end));
  // Punched between the two calls: no data after all, but what was promised to be some is never empty.
  return Extent{first, std::max(last, std::min(first + 1, end))};
}

}  // namespace yado::image
