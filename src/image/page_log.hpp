#pragma once
// The log of a part while it is written: hands out slots, counts who refers to them, and gives the room of dead ones
// back to the file system (docs/formats/pages.md, "Writing"). Internal to src/image; thread-safe.

#include <array>
#include <bitset>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>

#include "base/error.hpp"
#include "image/page.hpp"
#include "image/page_index.hpp"
#include "os/fd.hpp"

namespace yado::image {

/// Slots that one writer fills before it writes: 1 MiB.
inline constexpr std::uint32_t extent_slots = 256;

enum class Caching { page_cache, direct };

class PageLog {
 public:
  /// Makes the file, which must not exist. `direct` (O_DIRECT) silently becomes `page_cache` where the file system
  /// knows no such thing.
  static Result<std::unique_ptr<PageLog>> create(const std::filesystem::path& path, Caching caching);

  /// The first slot of an extent for the caller alone. Each of its slots is held once, by the caller.
  /// `no_space` when the log has no more numbers.
  Result<Slot> reserve();
  /// Writes the first `pages.size() / page_bytes` slots of an extent and lets go of the rest, which stay holes. The
  /// data are aligned to 4096.
  Status write(Slot extent, std::span<const std::byte> pages);
  /// A page less refers to the slot. Its room may be given back at once, or with its neighbours later.
  Status release(Slot slot);
  /// A page more refers to the slot. False, and nothing is held, when nobody does any more or when its extent is not
  /// written yet and not `own`, so that there is nothing to compare with.
  bool hold_again(Slot slot, Slot own);
  /// Of a slot that was written and is held. `page` is aligned to 4096.
  Status read(Slot slot, PageBuffer page) const;

  /// All writers are done: every dead slot becomes a hole, the length is `slots`, and it is on the disk.
  Status finish(std::uint64_t slots);

  const std::filesystem::path& path() const { return path_; }

 private:
  PageLog(std::filesystem::path path, os::Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  struct Extent {
    std::array<std::uint32_t, extent_slots> references;
    std::bitset<extent_slots> holes;  ///< never written, or given back
    std::uint32_t live = extent_slots;
    std::uint32_t dead = 0;  ///< nobody refers to them, and they are no holes yet
    bool written = false;
  };
  enum class Punch { when_it_pays, all };
  static bool pays(const Extent& extent);
  /// Gives back the dead slots of a written extent.
  Status punch(std::size_t number, Punch which);

  std::filesystem::path path_;
  os::Fd fd_;
  std::mutex mutex_;            // guards what follows
  std::deque<Extent> extents_;  // a deque: it grows without moving
  bool can_punch_ = true;
};

}  // namespace yado::image
