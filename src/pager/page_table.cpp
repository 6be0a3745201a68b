#include "pager/page_table.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace yado::pager {

PageTable::PageTable(const TableLimits& limits)
    : limits_(limits), local_limit_(limits.local_limit), entries_(limits.pages), here_(limits.pages), prefetcher_(limits.prefetch_most) {
  YADO_CHECK(limits.pages < none, "a memory of {} pages", limits.pages);
  YADO_CHECK(limits.local_limit >= 16, "a local limit of {} pages cannot hold what one instruction touches",
             limits.local_limit);
}

void PageTable::push(List& list, PageNumber page) {
  const auto at = static_cast<std::uint32_t>(page);
  entries_[page].older = list.newest;
  entries_[page].newer = none;
  (list.newest == none ? list.oldest : entries_[list.newest].newer) = at;
  list.newest = at;
  ++list.size;
}

void PageTable::unlink(List& list, PageNumber page) {
  const Entry& entry = entries_[page];
  (entry.older == none ? list.oldest : entries_[entry.older].newer) = entry.newer;
  (entry.newer == none ? list.newest : entries_[entry.newer].older) = entry.older;
  --list.size;
}

/// Room that is made ahead of need: two of the largest windows, but never a large part of a small share. None where there is room for all.
std::uint64_t PageTable::reserve() const {
  if (local_limit_ >= entries_.size()) return 0;
  return std::clamp<std::uint64_t>(local_limit_ / 16, 1, 2 * std::uint64_t{limits_.prefetch_most} + 64);
}

std::uint64_t PageTable::batch() const { return std::clamp<std::uint64_t>(local_limit_ / 32, 1, 64); }

void PageTable::fault(PageNumber page, Actions& out) {
  Entry& entry = entries_[page];
  ++counts_.faults;
  switch (entry.state) {
    case PageState::remote:
      if (entry.waited) break;
      if (room() == 0 && !paused_) {
        entry.waited = true;
        waiting_.push_back(page);
        ++counts_.room_waits;
      } else {
        fetch(page, out);
      }
      break;
    case PageState::fetching: break;  // putting it into place wakes everybody
    case PageState::punching: entry.waited = true; break;
    case PageState::unmapped:
      ++counts_.minor_faults;
      unlink(inactive_, page);
      map(page, out);
      break;
    case PageState::evicting:
      // Undone: what was read of it may be old in a moment. Its store goes on and does no harm.
      ++counts_.evictions_undone;
      --evicting_;
      entry.ticket = 0;
      map(page, out);
      break;
    case PageState::local:  // the report is old, or the page was taken out of view without the table (by Pager::watch_use, or by the kernel)
      unlink(active_, page);
      map(page, out);
      break;
  }
  balance(out);
}

void PageTable::map(PageNumber page, Actions& out) {
  entries_[page].state = PageState::local;
  push(active_, page);
  out.push_back(Map{page});
}

void PageTable::fetch(PageNumber page, Actions& out) {
  const auto start = [&](PageNumber at) {
    entries_[at].state = PageState::fetching;
    ++in_file_;
    ++fetching_;
  };
  start(page);
  out.push_back(Fetch{{page}, true});
  const PageRun window = prefetcher_.window(page);
  std::vector<PageNumber> around;
  const PageNumber end = std::min<PageNumber>(window.first + window.pages, entries_.size());
  for (PageNumber at = window.first; at < end; ++at) {
    // Half of the reserve stays for pages that somebody waits for.
    if (room() <= reserve() / 2 || fetching_ >= limits_.fetching_most) break;
    if (entries_[at].state != PageState::remote || entries_[at].waited) continue;
    start(at);
    around.push_back(at);
  }
  if (!around.empty()) out.push_back(Fetch{std::move(around), false});
}

void PageTable::fetched(std::span<const PageNumber> pages, Actions& out) {
  for (const PageNumber page : pages) {
    YADO_CHECK(entries_[page].state == PageState::fetching, "page {} came unasked", page);
    entries_[page].state = PageState::local;
    here_.set(page);
    push(active_, page);
    --fetching_;
    ++counts_.paged_in;
  }
  balance(out);
}

void PageTable::stored(std::uint64_t ticket, Actions& out) {
  const auto found = evictions_.find(ticket);
  YADO_CHECK(found != evictions_.end(), "eviction {} is not under way", ticket);
  std::vector<PageNumber>& pages = found->second;
  std::erase_if(pages, [&](PageNumber page) { return entries_[page].ticket != ticket; });
  for (const PageNumber page : pages) {
    entries_[page].state = PageState::punching;
    here_.reset(page);
  }
  if (pages.empty())
    evictions_.erase(found);
  else
    out.push_back(Punch{ticket, pages});
  balance(out);
}

void PageTable::store_failed(std::uint64_t ticket, Actions& out) {
  const auto found = evictions_.find(ticket);
  YADO_CHECK(found != evictions_.end(), "eviction {} is not under way", ticket);
  for (const PageNumber page : found->second) {
    Entry& entry = entries_[page];
    if (entry.ticket != ticket) continue;
    entry.ticket = 0;
    entry.state = PageState::unmapped;
    --evicting_;
    push(inactive_, page);
  }
  evictions_.erase(found);
  paused_ = true;
  admit_waiting(out);
}

void PageTable::punched(std::uint64_t ticket, Actions& out) {
  const auto found = evictions_.find(ticket);
  YADO_CHECK(found != evictions_.end(), "eviction {} is not under way", ticket);
  const std::vector<PageNumber> pages = std::move(found->second);
  evictions_.erase(found);
  for (const PageNumber page : pages) {
    Entry& entry = entries_[page];
    entry.state = PageState::remote;
    entry.ticket = 0;
    --evicting_;
    --in_file_;
    ++counts_.paged_out;
    if (entry.waited) waiting_.push_back(page);
  }
  balance(out);
}

void PageTable::resume(Actions& out) {
  paused_ = false;
  balance(out);
}

void PageTable::set_local_limit(std::uint64_t pages, Actions& out) {
  set_local_limit(pages);
  balance(out);
}

void PageTable::set_local_limit(std::uint64_t pages) { local_limit_ = std::max<std::uint64_t>(pages, 16); }

std::size_t PageTable::prefetch(std::span<const PageNumber> pages, Actions& out) {
  std::vector<PageNumber> wanted;
  std::size_t seen = 0;
  for (; seen < pages.size() && room() > reserve() && fetching_ < limits_.fetching_most; ++seen) {
    const PageNumber page = pages[seen];
    if (entries_[page].state != PageState::remote || entries_[page].waited) continue;
    entries_[page].state = PageState::fetching;
    ++in_file_;
    ++fetching_;
    wanted.push_back(page);
  }
  std::ranges::sort(wanted);
  if (!wanted.empty()) out.push_back(Fetch{std::move(wanted), false});
  return seen;
}

std::size_t PageTable::bring(std::span<const PageNumber> pages, std::vector<PageNumber>& here, Actions& out) {
  std::vector<PageNumber> wanted;
  std::size_t seen = 0;
  for (; seen < pages.size(); ++seen) {
    Entry& entry = entries_[pages[seen]];
    if (entry.state == PageState::local || entry.state == PageState::unmapped) here.push_back(pages[seen]);
    const bool is_on_its_way = entry.waited || (entry.state != PageState::remote && entry.state != PageState::punching);
    if (is_on_its_way) continue;
    if (room() <= reserve()) break;
    if (entry.state == PageState::punching) {
      entry.waited = true;
      continue;
    }
    entry.state = PageState::fetching;
    ++in_file_;
    ++fetching_;
    wanted.push_back(pages[seen]);
  }
  std::ranges::sort(wanted);
  if (!wanted.empty()) out.push_back(Fetch{std::move(wanted), false});
  return seen;
}

void PageTable::take_down(const PageRun& run, Recency& to) const {
  for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
    const PageState state = entries_[page].state;
    to.listed_[page] = state == PageState::local || state == PageState::unmapped;
    to.older_[page] = entries_[page].older;
  }
  to.newest_[0] = active_.newest;
  to.newest_[1] = inactive_.newest;
}

std::vector<PageNumber> PageTable::Recency::pages() const {
  std::vector<PageNumber> pages;
  std::vector<bool> left = listed_;
  const auto take = [&](PageNumber page) {
    pages.push_back(page);
    left[page] = false;
  };
  for (const std::uint32_t newest : newest_)
    for (std::uint32_t page = newest; page != none && left[page]; page = older_[page]) take(page);
  for (PageNumber page = 0; page < left.size(); ++page)
    if (left[page]) take(page);
  return pages;
}

void PageTable::adopt_local(const PageRun& run) {
  for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
    YADO_CHECK(entries_[page].state == PageState::remote, "page {} is there already", page);
    entries_[page].state = PageState::unmapped;
    here_.set(page);
    push(inactive_, page);
    ++in_file_;
  }
}

void PageTable::admit_waiting(Actions& out) {
  while (!waiting_.empty() && (room() > 0 || paused_)) {
    const PageNumber page = waiting_.front();
    waiting_.pop_front();
    entries_[page].waited = false;
    fetch(page, out);
  }
}

/// Keeps room for what comes: looks at the oldest pages in time, and evicts before somebody has to wait for it.
void PageTable::balance(Actions& out) {
  admit_waiting(out);
  if (paused_) return;
  const std::uint64_t coming = room() + evicting_;  // of it, once the evictions under way are done
  const std::uint64_t wanted = reserve() + waiting_.size() + (in_file_ > local_limit_ ? in_file_ - local_limit_ : 0);
  if (coming >= 2 * reserve() + waiting_.size() && in_file_ <= local_limit_) return;
  const std::uint64_t looked_at = std::clamp<std::uint64_t>(local_limit_ / 8, 2 * batch(), 16 * 1024);
  if (inactive_.size < looked_at) look_at_oldest(std::min<std::uint64_t>(looked_at - inactive_.size, 4 * batch()), out);
  for (std::uint64_t have = room() + evicting_; have < wanted && evicting_ < limits_.evicting_most && inactive_.size > 0;) {
    const std::uint64_t most = std::min<std::uint64_t>(batch(), inactive_.size);
    evict_oldest(most, out);
    have += most;
  }
}

void PageTable::look_at_oldest(std::uint64_t most, Actions& out) {
  std::vector<PageNumber> pages;
  while (pages.size() < most && active_.size > 0) {
    const PageNumber page = active_.oldest;
    unlink(active_, page);
    entries_[page].state = PageState::unmapped;
    push(inactive_, page);
    pages.push_back(page);
  }
  std::ranges::sort(pages);
  if (!pages.empty()) out.push_back(Unmap{std::move(pages)});
}

void PageTable::evict_oldest(std::uint64_t most, Actions& out) {
  if (++last_ticket_ == 0) ++last_ticket_;  // 0: none
  std::vector<PageNumber> pages;
  while (pages.size() < most && inactive_.size > 0) {
    const PageNumber page = inactive_.oldest;
    unlink(inactive_, page);
    entries_[page].state = PageState::evicting;
    entries_[page].ticket = last_ticket_;
    pages.push_back(page);
  }
  evicting_ += pages.size();
  std::ranges::sort(pages);
  evictions_.emplace(last_ticket_, pages);
  out.push_back(Evict{last_ticket_, std::move(pages)});
}

PageTable::Counts PageTable::counts() const {
  Counts counts = counts_;
  counts.in_file = in_file_;
  counts.mapped = active_.size;
  counts.unmapped = inactive_.size;
  counts.fetching = fetching_;
  counts.evicting = evicting_;
  counts.waiting = waiting_.size();
  counts.over_limit = in_file_ > local_limit_ ? in_file_ - local_limit_ : 0;
  return counts;
}

}  // namespace yado::pager
