#include "image/page_log.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
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
// Cleaning for fewer is not worth it.
constexpr std::uint32_t few = 16;

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
  live_ += extent_slots;
  return static_cast<Slot>((extents_.size() - 1) * extent_slots);
}

Result<bool> PageLog::write(Slot extent, std::span<const std::byte> data, std::span<const PageNumber> owners) {
  const std::uint64_t offset = std::uint64_t{extent} * page_bytes;
  YADO_TRY(write_at(fd_, data, offset), path_.native());
  bool dead = false;
  {
    const std::lock_guard lock(mutex_);
    Extent& written = extent_of(extent);
    written.written = true;
    std::ranges::copy(owners, written.owners.begin());
    for (std::size_t slot = owners.size(); slot < extent_slots; ++slot) {
      YADO_CHECK(written.references[slot] == 1, "slot {} is used and was not written", extent + slot);
      written.references[slot] = 0;
      --written.live;
      --live_;
      written.holes.set(slot);
    }
    dead = written.live == 0;
  }
  // To the disk from now on, not all at once in the fsync at the end. A hint: where it fails, fsync says why.
  (void)::sync_file_range(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(data.size()),
                          SYNC_FILE_RANGE_WRITE);
  return dead;
}

bool PageLog::release(Slot slot) {
  const std::lock_guard lock(mutex_);
  Extent& extent = extent_of(slot);
  std::uint32_t& references = extent.references[slot % extent_slots];
  YADO_CHECK(references > 0, "slot {} is released once too often", slot);
  if (--references > 0) return false;
  --extent.live;
  --live_;
  ++extent.dead;
  ++dead_;
  if (!extent.written || extent.being_cleaned) return false;
  // What is written again and again dies extent by extent of its own accord: pages are moved out only when the whole
  // log has more dead than live ones.
  return extent.live == 0 || (dead_ > live_ && extent.dead >= few && extent.dead >= extent.live);
}

bool PageLog::hold_again(Slot slot) {
  const std::lock_guard lock(mutex_);
  std::uint32_t& references = extent_of(slot).references[slot % extent_slots];
  if (references == 0) return false;
  ++references;
  return true;
}

Result<std::size_t> PageLog::read(Slot first, std::span<std::byte> data) const {
  YADO_ASSIGN(const std::size_t got, read_at(fd_, data, std::uint64_t{first} * page_bytes), path_.native());
  return got;
}

std::optional<std::vector<PageLog::LiveSlot>> PageLog::begin_cleaning(Slot first) {
  const std::lock_guard lock(mutex_);
  Extent& extent = extent_of(first);
  if (!extent.written || std::exchange(extent.being_cleaned, true)) return std::nullopt;
  std::vector<LiveSlot> live;
  for (Slot i = 0; i < extent_slots; ++i) {
    if (extent.references[i] == 0) continue;
    ++extent.references[i];
    live.push_back({first / extent_slots * extent_slots + i, extent.owners[i]});
  }
  return live;
}

Status PageLog::end_cleaning(Slot first) {
  std::vector<std::pair<Slot, Slot>> ranges;  // slots from … to
  {
    const std::lock_guard lock(mutex_);
    Extent& extent = extent_of(first);
    const Slot begin = first / extent_slots * extent_slots;
    for (Slot i = 0; i < extent_slots; ++i) {
      if (extent.references[i] > 0 || extent.holes[i]) continue;
      if (!ranges.empty() && ranges.back().second == begin + i)
        ++ranges.back().second;
      else
        ranges.emplace_back(begin + i, begin + i + 1);
      extent.holes.set(i);
    }
    dead_ -= std::exchange(extent.dead, 0);
    extent.being_cleaned = false;
  }
  // Outside the lock: a slot to which nobody refers is never used again.
  for (const auto& [from, to] : ranges) YADO_PASS(punch(from, to));
  return {};
}

Status PageLog::punch(Slot from, Slot to) const {
  const auto offset = static_cast<off_t>(std::uint64_t{from} * page_bytes);
  const auto length = static_cast<off_t>(std::uint64_t{to - from} * page_bytes);
  int result = 0;
  do {
    result = ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  } while (result != 0 && errno == EINTR);
  // A file system that knows no holes: then the log just grows.
  if (result == 0 || errno == EOPNOTSUPP) return {};
  return fail_errno(fmt::format("{}: punch {} bytes at {}", path_.native(), length, offset));
}

std::vector<Slot> PageLog::worth_cleaning_at_the_end() const {
  const std::lock_guard lock(mutex_);
  std::vector<Slot> list;
  for (std::size_t number = 0; number < extents_.size(); ++number) {
    const Extent& extent = extents_[number];
    if (extent.dead >= few && 3 * extent.dead >= extent.live) list.push_back(static_cast<Slot>(number * extent_slots));
  }
  return list;
}

Status PageLog::finish(std::uint64_t slots) {
  if (::ftruncate(fd_.get(), static_cast<off_t>(slots * page_bytes)) != 0)
    return fail_errno(fmt::format("truncate {} to {} slots", path_.native(), slots));
  if (::fsync(fd_.get()) != 0) return fail_errno(fmt::format("fsync {}", path_.native()));
  return {};
}

}  // namespace yado::image
