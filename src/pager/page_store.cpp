#include "pager/page_store.hpp"

#include <algorithm>
#include <cstring>

#include "base/check.hpp"

namespace yado::pager {
namespace {
constexpr std::uint64_t always_aside = 64_MiB / page_bytes;
constexpr std::uint64_t part_aside = 8;  // of the quota
}  // namespace

PageStore::PageStore(PageArena& arena, std::uint64_t pages, std::uint64_t quota_pages)
    : arena_(arena), pages_(pages), quota_pages_(quota_pages), leaves_((pages + leaf_pages - 1) / leaf_pages) {}

PageStore::~PageStore() { close(); }

void PageStore::close() {
  {
    const std::lock_guard lock(writer_);
    {
      const std::lock_guard moment(owner_mutex_);
      owner_ = {~std::uint64_t{0}, ~std::uint64_t{0}};
    }
    closed_ = true;
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
      const std::lock_guard shard(mutex_of(i * leaf_pages));
      for (PageNumber page = i * leaf_pages; leaves_[i] && page < (i + 1) * leaf_pages; ++page) set(page, absent);
      leaves_[i].reset();
    }
  }
  forget_aside();
}

void PageStore::forget_aside() {
  std::vector<std::function<void()>> wake;
  {
    const std::lock_guard lock(aside_mutex_);
    aside_.clear();
    wake.swap(waiting_aside_);
  }
  for (const auto& one : wake) one();
}

Result<PageStore::Owner> PageStore::take_over(const Owner& owner, std::optional<std::uint64_t> from) {
  const std::lock_guard lock(writer_);
  const std::lock_guard moment(owner_mutex_);
  if (owner <= owner_)
    return fail(Errc::stale_epoch, "epoch {} generation {} comes after epoch {} generation {}", owner.epoch,
                owner.generation, owner_.epoch, owner_.generation);
  const bool again = owner.epoch == owner_.epoch && life_of(owner.generation) == life_of(owner_.generation);
  if (from && owner_.epoch != *from && !again)
    return fail(Errc::stale_epoch, "epoch {} inherits from epoch {}, and epoch {} has taken over meanwhile", owner.epoch, *from, owner_.epoch);
  return std::exchange(owner_, owner);
}

PageStore::Owner PageStore::owner() const {
  const std::lock_guard moment(owner_mutex_);
  return owner_;
}

Status PageStore::set_quota(const Owner& owner, std::uint64_t pages) {
  const std::lock_guard lock(writer_);
  if (auto may = check(owner); !may) return may;
  if (const std::uint64_t used = data_pages_ + disk_pages_; used > pages) return fail(Errc::no_space, "{} pages are held, more than {}", used, pages);
  quota_pages_ = pages;
  return {};
}

Status PageStore::check(const Owner& by) const {
  const Owner now = owner();
  if (by == now) return {};
  return fail(Errc::stale_epoch, "epoch {} generation {} has taken over", now.epoch, now.generation);
}

Status PageStore::check_inside(const std::vector<KindRun>& runs) const {
  if (runs.empty() || runs.back().first + runs.back().pages <= pages_) return {};
  return fail(Errc::invalid_argument, "page {} lies outside a memory of {} pages",
              runs.back().first + runs.back().pages - 1, pages_);
}

PageStore::Slot PageStore::slot(PageNumber page) const {
  const auto& leaf = leaves_[page / leaf_pages];
  return leaf ? leaf->slots[page % leaf_pages] : absent;
}

bool PageStore::is_on_disk(PageNumber page) const {
  const std::lock_guard lock(mutex_of(page));
  return slot(page) == on_disk;
}

/// Only the place; the shard's mutex is held.
void PageStore::set(PageNumber page, Slot slot) {
  auto& leaf = leaves_[page / leaf_pages];
  if (!leaf) {
    if (slot == absent) return;
    leaf = std::make_unique<Leaf>();
  }
  Slot& old = leaf->slots[page % leaf_pages];
  if (old == slot) return;
  if (in_memory(old)) arena_.release(old), --data_pages_;
  if (old == zero) --zero_pages_;
  if (old == on_disk) --disk_pages_;
  if (in_memory(slot)) ++data_pages_;
  if (slot == zero) ++zero_pages_;
  if (slot == on_disk) ++disk_pages_;
  old = slot;
}

/// Has been put. What is as it was at the last kept cut is not in a delta from there.
void PageStore::mark(PageNumber page, bool unchanged) {
  Leaf& leaf = *leaves_[page / leaf_pages];
  if (cut_ == Cut::open) leaf.put[page % leaf_pages] = true;
  if (cut_ == Cut::open && (!unchanged || scope_ == Scope::all)) leaf.pending[page % leaf_pages] = true;
  if (unchanged) return;
  leaf.changed[page % leaf_pages] = true;
  if (cut_ == Cut::fixed) leaf.changed_after[page % leaf_pages] = true;
}

/// What is about to be overwritten, if the cut still needs it. Both the writers' and the shard's mutex are held.
void PageStore::set_aside(PageNumber page) {
  const auto& leaf = leaves_[page / leaf_pages];
  if (cut_ != Cut::fixed || !leaf || !leaf->pending[page % leaf_pages]) return;
  leaf->pending[page % leaf_pages] = false;
  const Slot at = leaf->slots[page % leaf_pages];
  Aside aside;
  if (at == on_disk) aside.chain = chain();
  if (in_memory(at)) {
    aside.content = std::make_unique_for_overwrite<std::array<std::byte, page_bytes>>();
    std::ranges::copy(arena_.at(at), aside.content->begin());
  }
  const std::lock_guard lock(aside_mutex_);
  aside_.emplace(page, std::move(aside));
}

Result<std::vector<PageStore::Slot>> PageStore::allocate(std::uint64_t slots) {
  std::vector<Slot> fresh;
  while (fresh.size() < slots)
    if (const auto one = arena_.allocate()) {
      fresh.push_back(*one);
    } else {
      for (const Slot slot : fresh) arena_.release(slot);
      return fail(Errc::no_space, "this host's memory for pages is used up");
    }
  return fresh;
}

/// `data` empty: zero. `fresh`: slots to take from.
void PageStore::write(PageNumber page, Bytes data, bool unchanged, std::vector<Slot>& fresh) {
  const bool is_data = !data.empty() && !is_zero(PageData(data));
  const std::lock_guard lock(mutex_of(page));
  set_aside(page);
  Slot to = zero;
  if (is_data) {
    to = slot(page);
    if (!in_memory(to)) {
      to = fresh.back();
      fresh.pop_back();
    }
    std::memcpy(arena_.at(to).data(), data.data(), page_bytes);
  }
  set(page, to);
  mark(page, unchanged);
}

Status PageStore::put(const Owner& owner, const Batch& batch, bool unchanged) {
  const std::lock_guard lock(writer_);
  if (auto may = check(owner); !may) return may;
  return store(batch, false, unchanged);
}

Status PageStore::add(std::uint64_t epoch, const Batch& batch) {
  const std::lock_guard lock(writer_);
  if (const std::uint64_t now = owner().epoch; now != epoch) return fail(Errc::stale_epoch, "epoch {} has taken over from epoch {}", now, epoch);
  return store(batch, true, false);
}

Status PageStore::store(const Batch& batch, bool only_absent, bool unchanged) {
  if (closed_) return fail(Errc::stale_epoch, "the session has ended");
  if (auto inside = check_inside(batch.runs); !inside) return inside;
  // Only writers change places, and this is the writer.
  const auto skipped = [&](PageNumber page) { return only_absent && slot(page) != absent; };
  std::uint64_t fresh_slots = 0, added = 0;
  for (const KindRun& run : batch.runs)
    for (PageNumber page = run.first; run.kind == PageKind::data && page < run.first + run.pages; ++page) {
      if (skipped(page)) continue;
      fresh_slots += !in_memory(slot(page));
      added += !in_memory(slot(page)) && slot(page) != on_disk;
    }
  if (const std::uint64_t used = data_pages_ + disk_pages_; used + added > quota_pages_)
    return fail(Errc::no_space, "{} more pages would exceed the quota of {}, of which {} are used", added, quota_pages_.load(), used);
  YADO_ASSIGN(std::vector<Slot> fresh, allocate(fresh_slots), "put");  // all of them before the first page is written
  Bytes data = batch.data;
  for (const KindRun& run : batch.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const Bytes content = run.kind == PageKind::data ? data.first(page_bytes) : Bytes{};
      data = data.subspan(content.size());
      if (!skipped(page)) write(page, content, unchanged, fresh);
    }
  for (const Slot left : fresh) arena_.release(left);  // zeros that came as data
  ++puts_;
  return {};
}

std::shared_ptr<const image::PageChain> PageStore::chain() const {
  const std::lock_guard lock(chain_mutex_);
  return chain_;
}

Result<PageStore::Found> PageStore::get(const Owner& owner, const Batch& wanted, std::span<std::byte> space) const {
  if (auto may = check(owner); !may) return std::unexpected(may.error());
  if (auto inside = check_inside(wanted.runs); !inside) return std::unexpected(inside.error());
  Found found;
  std::size_t used = 0;
  std::vector<std::pair<PageNumber, std::size_t>> from_disk;
  std::shared_ptr<const image::PageChain> source;
  for (const KindRun& run : wanted.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const std::lock_guard lock(mutex_of(page));
      const Slot at = slot(page);
      append(found.runs, page, at == absent ? PageKind::absent : at == zero ? PageKind::zero : PageKind::data);
      if (at == absent || at == zero) continue;
      if (at == on_disk) {
        from_disk.emplace_back(page, used);
        source = chain();
      } else {
        std::memcpy(space.subspan(used, page_bytes).data(), arena_.at(at).data(), page_bytes);
      }
      used += page_bytes;
    }
  // Without a lock: a chain never changes, and who puts such a page meanwhile is not behind this GET.
  for (const auto& [page, at] : from_disk)
    YADO_TRY(source->read(image::PageNumber{page}, image::PageBuffer(space.subspan(at, page_bytes))), "image");
  ++gets_;
  found.data = space.first(used);
  found.from_disk = from_disk.size();
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
      if (const auto& leaf = leaves_[page / leaf_pages])
        for (; page < end; ++page) {
          set_aside(page);
          set(page, absent);
          leaf->changed[page % leaf_pages] = leaf->pending[page % leaf_pages] = leaf->changed_after[page % leaf_pages] = false;
        }
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
        const Slot at = slot(page);
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

// ---- cuts ------------------------------------------------------------------------------------------------------------

template <class Work>
void PageStore::each_leaf(Work work) {
  for (std::size_t i = 0; i < leaves_.size(); ++i) {
    const std::lock_guard lock(mutex_of(i * leaf_pages));
    if (leaves_[i]) work(*leaves_[i]);
  }
}

void PageStore::begin_cut(Scope scope) {
  const std::lock_guard lock(writer_);
  YADO_CHECK(cut_ == Cut::none, "a cut is under way");
  cut_ = Cut::open;
  scope_ = scope;
  taken_ = 0;
  each_leaf([&](Leaf& leaf) {
    leaf.changed_after.reset();
    leaf.put.reset();
    leaf.pending = leaf.changed;
    for (std::size_t i = 0; scope == Scope::all && i < leaf_pages; ++i) leaf.pending[i] = leaf.slots[i] != absent;
  });
}

void PageStore::fix() {
  const std::lock_guard lock(writer_);
  YADO_CHECK(cut_ == Cut::open, "no cut is under way");
  cut_ = Cut::fixed;
}

Result<std::optional<PageStore::Pending>> PageStore::take_pending(PageNumber from, std::span<std::byte, page_bytes> space, Which which) {
  for (PageNumber page = from; page < pages_;) {
    const PageNumber end = std::min<PageNumber>((page / leaf_pages + 1) * leaf_pages, pages_);
    std::unique_lock lock(mutex_of(page));
    const auto& leaf = leaves_[page / leaf_pages];
    if (leaf && leaf->pending.any())
      for (; page < end; ++page) {
        if (!leaf->pending[page % leaf_pages] || (which == Which::settled && leaf->put[page % leaf_pages])) continue;
        leaf->pending[page % leaf_pages] = false;
        ++taken_;
        const Slot at = leaf->slots[page % leaf_pages];
        if (in_memory(at)) std::ranges::copy(arena_.at(at), space.begin());
        const auto source = at == on_disk ? chain() : nullptr;
        lock.unlock();
        if (source) YADO_TRY(source->read(image::PageNumber{page}, space), "image");
        return Pending{page, at == zero ? PageKind::zero : PageKind::data};
      }
    page = end;
  }
  return std::nullopt;
}

Result<std::optional<PageStore::Pending>> PageStore::take_aside(std::span<std::byte, page_bytes> space) {
  std::vector<std::function<void()>> wake;
  PageNumber page = 0;
  Aside aside;
  {
    const std::lock_guard lock(aside_mutex_);
    if (aside_.empty()) return std::nullopt;
    const auto at = aside_.begin();
    page = at->first;
    aside = std::move(at->second);
    aside_.erase(at);
    ++taken_;
    if (aside_.size() < most_aside() / 2) wake.swap(waiting_aside_);
  }
  for (const auto& one : wake) one();
  if (aside.content) std::ranges::copy(*aside.content, space.begin());
  if (aside.chain) YADO_TRY(aside.chain->read(image::PageNumber{page}, space), "image");
  return Pending{page, aside.content || aside.chain ? PageKind::data : PageKind::zero};
}

bool PageStore::is_full_aside(std::function<void()> wake) {
  const std::lock_guard lock(aside_mutex_);
  if (aside_.size() < most_aside()) return false;
  waiting_aside_.push_back(std::move(wake));
  return true;
}

std::uint64_t PageStore::most_aside() const { return std::max(always_aside, quota_pages_ / part_aside); }

std::uint64_t PageStore::pending_pages() const {
  std::uint64_t pages = 0;
  for (std::size_t i = 0; i < leaves_.size(); ++i) {
    const std::lock_guard lock(mutex_of(i * leaf_pages));
    if (leaves_[i]) pages += leaves_[i]->pending.count();
  }
  return pages;
}

void PageStore::end_cut(bool kept) {
  {
    const std::lock_guard lock(writer_);
    cut_ = Cut::none;
    taken_ = 0;
    each_leaf([&](Leaf& leaf) {
      if (kept) leaf.changed = leaf.changed_after;
      leaf.pending.reset();
      leaf.changed_after.reset();
    });
  }
  forget_aside();
}

// ---- from an image ---------------------------------------------------------------------------------------------------

Result<PageStore::Missing> PageStore::missing_of(const image::PageChain& chain, const std::vector<KindRun>& wanted) const {
  Missing missing;
  for (const KindRun& run : wanted)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page, ++missing.there) {
      if (slot(page) != absent) continue;
      const image::PageChain::Place place = chain.find(image::PageNumber{page});
      const bool data = !place.page.record.zero();
      if (data && !place.part->has_log())
        return fail(Errc::unavailable, "page {} lies in part {}, whose log is not here", page, place.part->name());
      append(missing.runs, page, data ? PageKind::data : PageKind::zero);
      missing.with_data += data;
    }
  return missing;
}

Result<std::uint64_t> PageStore::quota_to_load(const image::PageChain& chain, const std::vector<KindRun>& wanted) const {
  const std::lock_guard lock(writer_);
  if (auto inside = check_inside(wanted); !inside) return std::unexpected(inside.error());
  if (chain.guest_pages() != pages_) return 0;  // load() says so
  YADO_ASSIGN(const Missing missing, missing_of(chain, wanted), "quota");
  return data_pages_ + disk_pages_ + missing.with_data;
}

Result<std::uint64_t> PageStore::load(const Owner& owner, std::shared_ptr<const image::PageChain> chain,
                                      const std::vector<KindRun>& wanted) {
  const std::lock_guard lock(writer_);
  if (auto may = check(owner); !may) return std::unexpected(may.error());
  if (auto inside = check_inside(wanted); !inside) return std::unexpected(inside.error());
  if (chain->guest_pages() != pages_)
    return fail(Errc::conflict, "the image is of a guest of {} pages, not of {}", chain->guest_pages(), pages_);
  if (const auto other = this->chain(); disk_pages_ > 0 && other->cut() != chain->cut())
    return fail(Errc::conflict, "{} pages of the cut {} have yet to be loaded", disk_pages_.load(), other->cut().hex());
  YADO_ASSIGN(const Missing missing, missing_of(*chain, wanted), "load");
  if (data_pages_ + disk_pages_ + missing.with_data > quota_pages_)
    return fail(Errc::no_space, "{} more pages would exceed the quota of {}", missing.with_data, quota_pages_.load());
  if (disk_pages_ == 0) {
    const std::lock_guard moment(chain_mutex_);
    chain_ = std::move(chain);
  }
  for (const KindRun& run : missing.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const std::lock_guard shard(mutex_of(page));
      set(page, run.kind == PageKind::data ? on_disk : zero);
    }
  return missing.there;
}

void PageStore::fetch_from_disk(const image::PageChain& from, PageNumber page, PageData content) {
  const std::lock_guard lock(writer_);
  const std::lock_guard shard(mutex_of(page));
  if (slot(page) != on_disk || chain().get() != &from) return;
  const auto to = arena_.allocate();
  if (!to) return;  // it stays where it is, and can be had
  std::memcpy(arena_.at(*to).data(), content.data(), page_bytes);
  set(page, *to);
}

SessionStats PageStore::stats() const {
  SessionStats stats{data_pages_ + disk_pages_, zero_pages_, quota_pages_, 0, puts_, gets_, disk_pages_, taken_, pending_pages()};
  {
    const std::lock_guard lock(aside_mutex_);
    stats.pending_pages += aside_.size();
  }
  for (std::size_t i = 0; i < leaves_.size(); ++i) {
    const std::lock_guard lock(mutex_of(i * leaf_pages));
    if (leaves_[i]) stats.changed_pages += leaves_[i]->changed.count();
  }
  return stats;
}

}  // namespace yado::pager
