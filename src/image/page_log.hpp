#pragma once
// The log of a part while it is written: hands out slots, counts who refers to them, knows which extents are worth
// cleaning (docs/formats/pages.md, "Writing"). Internal to src/image; thread-safe.

#include <array>
#include <bitset>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"
#include "image/page_index.hpp"
#include "os/fd.hpp"

namespace yado::image {

/// Slots that one writer fills before it writes: 1 MiB.
inline constexpr std::uint32_t extent_slots = 256;

class PageLog {
 public:
  /// Makes the file, which must not exist. `direct` (O_DIRECT) silently becomes `page_cache` where the file system
  /// knows no such thing.
  static Result<std::unique_ptr<PageLog>> create(const std::filesystem::path& path, Caching caching);

  /// The first slot of an extent for the caller alone. Each of its slots is held once, by the caller.
  /// `no_space` when the log has no more numbers.
  Result<Slot> reserve();
  /// Writes the first slots of an extent, one for each of `owners`: the page it was written for. The rest stay holes.
  /// The data are aligned to 4096. True when nobody refers to any of it any more: then it wants cleaning, of which release() could say nothing before.
  Result<bool> write(Slot extent, std::span<const std::byte> data, std::span<const PageNumber> owners);
  /// A page less refers to the slot. True when its extent is now worth cleaning.
  bool release(Slot slot);
  /// A page more refers to the slot. False when nobody did any more: then it is dead for good.
  bool hold_again(Slot slot);
  /// Of slots that were written and are held. `data` is aligned to 4096; less than all at the end of the log.
  Result<std::size_t> read(Slot first, std::span<std::byte> data) const;

  struct LiveSlot {
    Slot slot;
    PageNumber owner;
  };
  /// To clean an extent: its slots that somebody refers to, each held once more. The owners' contents go elsewhere,
  /// then comes `end_cleaning`. Nothing when it is being cleaned already.
  std::optional<std::vector<LiveSlot>> begin_cleaning(Slot extent);
  /// Gives the room of the slots of an extent back to which nobody refers.
  Status end_cleaning(Slot extent);

  /// Extents of which a quarter or more is dead.
  std::vector<Slot> worth_cleaning_at_the_end() const;
  /// All writers are done: the length is `slots`, and it is on the disk.
  Status finish(std::uint64_t slots);

 private:
  PageLog(std::filesystem::path path, os::Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  struct Extent {
    std::array<std::uint32_t, extent_slots> references;
    std::array<PageNumber, extent_slots> owners;
    std::bitset<extent_slots> holes;  ///< never written, or given back
    std::uint32_t live = extent_slots;
    std::uint32_t dead = 0;  ///< nobody refers to them, and they are no holes
    bool written = false;
    bool being_cleaned = false;
  };
  Status punch(Slot from, Slot to) const;
  Extent& extent_of(Slot slot) { return extents_[slot / extent_slots]; }

  const std::filesystem::path path_;
  const os::Fd fd_;
  mutable std::mutex mutex_;    // guards what follows
  std::deque<Extent> extents_;  // a deque: it grows without moving
  std::uint64_t live_ = 0;      // slots, of all extents
  std::uint64_t dead_ = 0;
};

}  // namespace yado::image
