#include "pager/page_store.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/check.hpp"

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

PageStore::PageStore(PageArena& arena, std::uint64_t pages, std::uint64_t quota_pages)
    : arena_(arena), pages_(pages), quota_pages_(quota_pages), leaves_((pages + leaf_pages - 1) / leaf_pages) {}

PageStore::~PageStore() {
  for (const auto& leaf : leaves_) {
    if (!leaf) continue;
    for (const std::uint32_t slot : leaf->slots)
      if (slot < zero) arena_.release(slot);
  }
}

Status PageStore::take_over(const Owner& owner) {
  const std::lock_guard lock(writer_);
  if (owner <= owner_)
    return fail(Errc::stale_epoch, "epoch {} generation {} comes after epoch {} generation {}", owner.epoch,
                owner.generation, owner_.epoch, owner_.generation);
  owner_ = owner;
  return {};
}

Status PageStore::check(const Owner& owner) const {
  if (owner == owner_) return {};
  return fail(Errc::stale_epoch, "epoch {} generation {} has taken over", owner_.epoch, owner_.generation);
}

Status PageStore::check_inside(const std::vector<KindRun>& runs) const {
  if (runs.empty() || runs.back().first + runs.back().pages <= pages_) return {};
  return fail(Errc::invalid_argument, "page {} lies outside a memory of {} pages",
              runs.back().first + runs.back().pages - 1, pages_);
}

std::uint32_t PageStore::slot(PageNumber page) const {
  const auto& leaf = leaves_[page / leaf_pages];
  return leaf ? leaf->slots[page % leaf_pages] : absent;
}

void PageStore::set(PageNumber page, std::uint32_t slot) {
  auto& leaf = leaves_[page / leaf_pages];
  if (!leaf) {
    if (slot == absent) return;
    leaf = std::make_unique<Leaf>();
  }
  std::uint32_t& old = leaf->slots[page % leaf_pages];
  if (old < zero && old != slot) arena_.release(old), --data_pages_;
  if (old == zero) --zero_pages_;
  if (slot < zero && old != slot) ++data_pages_;
  if (slot == zero) ++zero_pages_;
  old = slot;
  leaf->changed[page % leaf_pages] = slot != absent;
}

/// `data` empty: zero. `fresh`: slots to take from.
void PageStore::write(PageNumber page, Bytes data, std::vector<std::uint32_t>& fresh) {
  const bool is_data = !data.empty() && !is_zero(PageData(data));
  const std::lock_guard lock(mutex_of(page));
  std::uint32_t to = zero;
  if (is_data) {
    to = slot(page);
    if (to >= zero) {
      to = fresh.back();
      fresh.pop_back();
    }
    std::memcpy(arena_.at(to).data(), data.data(), page_bytes);
  }
  set(page, to);
}

Status PageStore::put(const Owner& owner, const Batch& batch) {
  const std::lock_guard lock(writer_);
  if (auto may = check(owner); !may) return may;
  if (auto inside = check_inside(batch.runs); !inside) return inside;
  std::uint64_t added = 0;
  for (const KindRun& run : batch.runs)
    for (PageNumber page = run.first; run.kind == PageKind::data && page < run.first + run.pages; ++page)
      added += slot(page) >= zero;  // only writers change slots, and this is the writer
  if (data_pages_ + added > quota_pages_)
    return fail(Errc::no_space, "{} more pages would exceed the quota of {}, of which {} are used", added, quota_pages_,
                data_pages_.load());
  std::vector<std::uint32_t> fresh;  // all of them before the first page is written
  while (fresh.size() < added)
    if (const auto one = arena_.allocate())
      fresh.push_back(*one);
    else
      break;
  const bool enough = fresh.size() == added;
  Bytes data = batch.data;
  for (const KindRun& run : batch.runs)
    for (PageNumber page = run.first; enough && page < run.first + run.pages; ++page) {
      const Bytes content = run.kind == PageKind::data ? data.first(page_bytes) : Bytes{};
      write(page, content, fresh);
      data = data.subspan(content.size());
    }
  for (const std::uint32_t left : fresh) arena_.release(left);
  if (!enough) return fail(Errc::no_space, "this host's memory for pages is used up");
  ++puts_;
  return {};
}

Result<PageStore::Found> PageStore::get(const Owner& owner, const Batch& wanted, std::span<std::byte> space) {
  {
    const std::lock_guard lock(writer_);
    if (auto may = check(owner); !may) return std::unexpected(may.error());
  }
  if (auto inside = check_inside(wanted.runs); !inside) return std::unexpected(inside.error());
  Found found;
  std::size_t used = 0;
  for (const KindRun& run : wanted.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const std::lock_guard lock(mutex_of(page));
      const std::uint32_t at = slot(page);
      append(found.runs, page, at == absent ? PageKind::absent : at == zero ? PageKind::zero : PageKind::data);
      if (at >= zero) continue;
      std::memcpy(space.subspan(used, page_bytes).data(), arena_.at(at).data(), page_bytes);
      used += page_bytes;
    }
  ++gets_;
  found.data = space.first(used);
  return found;
}

Status PageStore::drop(const Owner& owner, const Batch& batch) {
  const std::lock_guard lock(writer_);
  if (auto may = check(owner); !may) return may;
  if (auto inside = check_inside(batch.runs); !inside) return inside;
  for (const KindRun& run : batch.runs) {
    PageNumber page = run.first;
    while (page < run.first + run.pages) {
      const PageNumber end = std::min<PageNumber>((page / leaf_pages + 1) * leaf_pages, run.first + run.pages);
      const std::lock_guard shard(mutex_of(page));
      if (leaves_[page / leaf_pages])
        for (; page < end; ++page) set(page, absent);
      page = end;
    }
  }
  return {};
}

std::vector<KindRun> PageStore::list(PageNumber from) const {
  std::vector<KindRun> runs;
  for (PageNumber page = from; page < pages_;) {
    const PageNumber end = std::min<PageNumber>((page / leaf_pages + 1) * leaf_pages, pages_);
    const std::lock_guard lock(mutex_of(page));
    if (leaves_[page / leaf_pages])
      for (; page < end; ++page) {
        const std::uint32_t at = slot(page);
        if (at == absent) continue;
        append(runs, page, at == zero ? PageKind::zero : PageKind::data);
        if (runs.size() <= most_runs) continue;
        runs.pop_back();
        return runs;
      }
    page = end;
  }
  return runs;
}

Result<std::uint64_t> PageStore::save(PageSink& sink, bool changed_only) {
  std::vector<PageNumber> saved;
  const auto failed = [&](const Error& error) {
    for (const PageNumber page : saved) {
      const std::lock_guard lock(mutex_of(page));
      if (slot(page) != absent) leaves_[page / leaf_pages]->changed[page % leaf_pages] = true;
    }
    return context(error, "save");
  };
  std::array<std::byte, page_bytes> copy;
  for (PageNumber page = 0; page < pages_; ++page) {
    bool is_data = false;
    {
      const std::lock_guard lock(mutex_of(page));
      const auto& leaf = leaves_[page / leaf_pages];
      if (!leaf) {
        page = page / leaf_pages * leaf_pages + leaf_pages - 1;
        continue;
      }
      const std::uint32_t at = slot(page);
      if (at == absent || (changed_only && !leaf->changed[page % leaf_pages])) continue;
      leaf->changed[page % leaf_pages] = false;
      is_data = at != zero;
      if (is_data) std::ranges::copy(arena_.at(at), copy.begin());
    }
    saved.push_back(page);
    if (auto added = is_data ? sink.add(page, copy) : sink.add_zero(page); !added) return failed(added.error());
  }
  if (auto finished = sink.finish(); !finished) return failed(finished.error());
  return saved.size();
}

Result<std::uint64_t> PageStore::load(const Owner& owner, PageSource& source) {
  for (std::uint64_t loaded = 0;; ++loaded) {
    YADO_ASSIGN(const auto page, source.next(), "load");
    if (!page) return loaded;
    if (!page->data.empty() && page->data.size() != page_bytes)
      return fail(Errc::corrupt, "load: page {} has {} bytes", page->number, page->data.size());
    Batch one;
    one.runs = {{page->number, 1, page->data.empty() ? PageKind::zero : PageKind::data}};
    one.data = page->data;
    YADO_TRY(put(owner, one), fmt::format("load page {}", page->number));
  }
}

SessionStats PageStore::stats() const {
  SessionStats stats{data_pages_, zero_pages_, quota_pages_, 0, puts_, gets_};
  for (std::size_t i = 0; i < leaves_.size(); ++i) {
    const std::lock_guard lock(mutex_of(i * leaf_pages));
    if (leaves_[i]) stats.changed_pages += leaves_[i]->changed.count();
  }
  return stats;
}

}  // namespace yado::pager
