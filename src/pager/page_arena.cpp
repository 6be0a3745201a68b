#include "pager/page_arena.hpp"

#include <sys/mman.h>

#include "base/check.hpp"
#include "base/units.hpp"

namespace yado::pager {
namespace {

constexpr std::size_t chunk_bytes = 2_MiB;

/// Aligned, so that it can be one huge page.
std::byte* map_chunk() {
  void* wide = ::mmap(nullptr, 2 * chunk_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (wide == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(wide);
  const std::size_t before = (chunk_bytes - reinterpret_cast<std::uintptr_t>(begin) % chunk_bytes) % chunk_bytes;
  if (before > 0) ::munmap(begin, before);
  ::munmap(begin + before + chunk_bytes, chunk_bytes - before);
  ::madvise(begin + before, chunk_bytes, MADV_HUGEPAGE);  // where the kernel has none, small ones do
  return begin + before;
}

}  // namespace

PageArena::PageArena(std::uint64_t capacity_pages)
    : capacity_pages_(capacity_pages), chunks_((capacity_pages + slots_per_chunk - 1) / slots_per_chunk) {
  YADO_CHECK(capacity_pages < (std::uint64_t{1} << 32) - 2, "a server of {} pages", capacity_pages);
  for (std::uint32_t i = 0; i < chunks_.size(); ++i) with_room_.insert(with_room_.end(), i);
}

PageArena::~PageArena() {
  for (const Chunk& chunk : chunks_)
    if (chunk.memory != nullptr) ::munmap(chunk.memory, chunk_bytes);
}

std::optional<std::uint32_t> PageArena::allocate() {
  const std::lock_guard lock(mutex_);
  if (used_ == capacity_pages_ || with_room_.empty()) return std::nullopt;
  const std::uint32_t number = *with_room_.begin();
  Chunk& chunk = chunks_[number];
  if (chunk.memory == nullptr) {
    chunk.memory = map_chunk();
    if (chunk.memory == nullptr) return std::nullopt;
    chunk.free.resize(slots_per_chunk);
    for (std::uint32_t i = 0; i < slots_per_chunk; ++i) chunk.free[i] = static_cast<std::uint16_t>(slots_per_chunk - 1 - i);
  }
  const std::uint32_t slot = number * slots_per_chunk + chunk.free.back();
  chunk.free.pop_back();
  if (chunk.free.empty()) with_room_.erase(number);
  ++used_;
  return slot;
}

void PageArena::release(std::uint32_t slot) {
  const std::lock_guard lock(mutex_);
  const std::uint32_t number = slot / slots_per_chunk;
  Chunk& chunk = chunks_[number];
  chunk.free.push_back(static_cast<std::uint16_t>(slot % slots_per_chunk));
  with_room_.insert(number);
  --used_;
  if (chunk.free.size() == slots_per_chunk) {
    ::munmap(chunk.memory, chunk_bytes);
    chunk.memory = nullptr;
    chunk.free.clear();
  }
}

std::span<std::byte, page_bytes> PageArena::at(std::uint32_t slot) const {
  return std::span<std::byte, page_bytes>(
      chunks_[slot / slots_per_chunk].memory + std::size_t{slot % slots_per_chunk} * page_bytes, page_bytes);
}

}  // namespace yado::pager
