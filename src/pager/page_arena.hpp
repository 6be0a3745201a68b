#pragma once
// The memory of a memory server: slots of one page.

#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "pager/page.hpp"

namespace yado::pager {

/// Thread-safe. Slots of one page each, in chunks of 2 MiB that can be one huge page; a chunk that is empty goes back to the kernel.
class PageArena {
 public:
  explicit PageArena(std::uint64_t capacity_pages);
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;
  ~PageArena();

  /// Nothing when the capacity is used up or the kernel gives no memory.
  std::optional<std::uint32_t> allocate();
  void release(std::uint32_t slot);
  /// Valid while the slot is allocated.
  std::span<std::byte, page_bytes> at(std::uint32_t slot) const;
  std::uint64_t capacity_pages() const { return capacity_pages_; }

 private:
  static constexpr std::uint32_t slots_per_chunk = 512;
  struct Chunk {
    std::byte* memory = nullptr;
    std::vector<std::uint16_t> free;  ///< newest last: what was used last is likeliest in a cache
  };
  std::uint64_t capacity_pages_;
  std::mutex mutex_;
  std::vector<Chunk> chunks_;  ///< all made at the start, so that at() needs no lock; `free` is guarded by mutex_
  std::set<std::uint32_t> with_room_;  ///< guarded by mutex_; the lowest is filled first, so that high ones get empty
  std::uint64_t used_ = 0;             ///< guarded by mutex_
};

}  // namespace yado::pager
