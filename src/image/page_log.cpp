#include "image/page_log.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "image/file_io.hpp"
#include "image/pass.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

constexpr std::size_t max_extents = zero_slot / extent_slots;
}  // namespace

Result<std::unique_ptr<PageLog>> PageLog::create(const std::filesystem::path& path, Caching caching) {
  constexpr int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW;
  YADO_TAKE(os::Fd fd, os::open_path(path, flags, 0600));
  if (caching == Caching::direct) (void)::fcntl(fd.get(), F_SETFL, O_DIRECT);
  return std::unique_ptr<PageLog>(new PageLog(path, std::move(fd)));
}

Result<Slot> PageLog::reserve() {
  const std::lock_guard lock(mutex_);
  if (extents_.size() >= max_extents) return fail(Errc::no_space, "{}: 16 TiB, it cannot grow", path_.native());
  extents_.emplace_back().references.fill(1);
  return static_cast<Slot>((extents_.size() - 1) * extent_slots);
}

Status PageLog::write(Slot extent, std::span<const std::byte> pages) {
  const std::size_t number = extent / extent_slots;
  const auto used = static_cast<std::uint32_t>(pages.size() / page_bytes);
  const std::uint64_t offset = std::uint64_t{extent} * page_bytes;
  YADO_TRY(write_at(fd_, pages, offset), path_.native());
  {
    const std::lock_guard lock(mutex_);
    Extent& written = extents_[number];
    written.written = true;
    for (std::uint32_t slot = used; slot < extent_slots; ++slot) {
      YADO_CHECK(written.references[slot] == 1, "slot {} is used and was not written", extent + slot);
      written.references[slot] = 0;
      --written.live;
      written.holes.set(slot);
    }
  }
  // To the disk from now on, not all at once in the fsync at the end. A hint: where it fails, fsync says why.
  (void)::sync_file_range(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(pages.size()),
                          SYNC_FILE_RANGE_WRITE);
  return punch(number, Punch::when_it_pays);
}

// The log takes at most 4/3 of its live pages, and a slot by itself is only punched when its extent is nearly empty: a
// punch costs a journal entry.
bool PageLog::pays(const Extent& extent) { return extent.written && extent.dead > 0 && 3 * extent.dead >= extent.live; }

Status PageLog::release(Slot slot) {
  const std::size_t number = slot / extent_slots;
  {
    const std::lock_guard lock(mutex_);
    Extent& extent = extents_[number];
    std::uint32_t& references = extent.references[slot % extent_slots];
    YADO_CHECK(references > 0, "slot {} is released once too often", slot);
    if (--references > 0) return {};
    --extent.live;
    ++extent.dead;
    if (!pays(extent)) return {};
  }
  return punch(number, Punch::when_it_pays);
}

bool PageLog::hold_again(Slot slot, Slot own) {
  const std::lock_guard lock(mutex_);
  if (slot / extent_slots >= extents_.size()) return false;
  Extent& extent = extents_[slot / extent_slots];
  std::uint32_t& references = extent.references[slot % extent_slots];
  if (references == 0 || (!extent.written && slot / extent_slots != own / extent_slots)) return false;
  ++references;
  return true;
}

Status PageLog::read(Slot slot, PageBuffer page) const {
  const std::uint64_t offset = std::uint64_t{slot} * page_bytes;
  YADO_ASSIGN(const std::size_t got, read_at(fd_, page, offset), path_.native());
  if (got != page.size()) return fail(Errc::io, "{}: {} bytes at {} instead of a page", path_.native(), got, offset);
  return {};
}

Status PageLog::punch(std::size_t number, Punch which) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges;  // slots from … to, in the extent
  {
    const std::lock_guard lock(mutex_);
    Extent& extent = extents_[number];
    if (!can_punch_ || extent.dead == 0 || (which == Punch::when_it_pays && !pays(extent))) return {};
    for (std::uint32_t slot = 0; slot < extent_slots; ++slot) {
      if (extent.references[slot] > 0 || extent.holes[slot]) continue;
      if (!ranges.empty() && ranges.back().second == slot)
        ++ranges.back().second;
      else
        ranges.emplace_back(slot, slot + 1);
      extent.holes.set(slot);
    }
    extent.dead = 0;
  }
  // Outside the lock: a slot that nobody refers to is never used again.
  for (const auto& [from, to] : ranges) {
    const auto offset = static_cast<off_t>((std::uint64_t{number} * extent_slots + from) * page_bytes);
    const auto length = static_cast<off_t>(std::uint64_t{to - from} * page_bytes);
    int result = 0;
    do {
      result = ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    } while (result != 0 && errno == EINTR);
    if (result == 0) continue;
    if (errno != EOPNOTSUPP) return fail_errno(fmt::format("{}: punch {} bytes at {}", path_.native(), length, offset));
    const std::lock_guard lock(mutex_);
    can_punch_ = false;
    return {};
  }
  return {};
}

Status PageLog::finish(std::uint64_t slots) {
  std::size_t extents = 0;
  {
    const std::lock_guard lock(mutex_);
    extents = extents_.size();
  }
  for (std::size_t number = 0; number < extents; ++number) YADO_PASS(punch(number, Punch::all));
  if (::ftruncate(fd_.get(), static_cast<off_t>(slots * page_bytes)) != 0)
    return fail_errno(fmt::format("truncate {} to {} slots", path_.native(), slots));
  if (::fsync(fd_.get()) != 0) return fail_errno(fmt::format("fsync {}", path_.native()));
  return {};
}

}  // namespace yado::image
