#pragma once
// Where every page is, and what to do next. Pure: events in, actions out, no I/O, no clock, no lock.
//
//                        fault, room                fetched
//         ┌───────────┐ ───────────▶ ┌───────────┐ ─────────▶ ┌───────────┐ ◀─────────────┐
//    ┌──▶ │  remote   │              │ fetching  │            │   local   │ ◀──── fault ┐ │ fault
//    │    └───────────┘              └───────────┘            └───────────┘             │ │ (the eviction's copy
//    │ punched                                                      │ Unmap, to see     │ │  is forgotten)
//    │    ┌───────────┐    stored    ┌───────────┐     evict  ┌─────▼─────┐ whether     │ │
//    └─── │ punching  │ ◀─────────── │ evicting  │ ◀───────── │ unmapped  │ it is used ─┘ │
//         └───────────┘              └─────┬─────┘            └───────────┘               │
//           a fault waits for punched      └──────────────────────────────────────────────┘
//
// *local*, *unmapped*, *evicting*, *punching* pages are in the memory file, a remote page is not. An unmapped page traps at its next use
// (userfaultfd MINOR): that is how use is seen. Eviction order is second-chance LRU: pages wait in `active`
// in the order of their last seen use; the oldest are unmapped and wait in `inactive`; who is still there at the end
// of it was not used meanwhile and goes.
//
// What holds (page_table_test.cpp simulates it): every fault that was reported is followed by a Map, a Wake or the end of a fetch
// of that page; a page leaves the file only when its last content is stored; at most `local_limit` pages are in the file,
// except while stores fail: then the guest goes on over the limit.

#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <variant>
#include <vector>

#include "pager/page.hpp"
#include "pager/page_bits.hpp"
#include "pager/prefetch.hpp"

namespace yado::pager {

enum class PageState : std::uint8_t { remote, fetching, local, unmapped, evicting, punching };

struct TableLimits {
  std::uint64_t pages = 0;               ///< of the memory
  std::uint64_t local_limit = 0;         ///< at least 16
  std::uint32_t prefetch_most = 64;      ///< 1: none
  std::uint32_t fetching_most = 1024;    ///< prefetching stops here; a page that is waited for is fetched anyway
  std::uint32_t evicting_most = 1024;
};

/// Make the page visible to the guest as it lies in the file (UFFDIO_CONTINUE), or, where it is visible, wake who waits.
struct Map {
  PageNumber page;
  std::uint32_t pages = 1;  ///< from there on; the table asks for one at a time
};
/// Get these, ascending, and put them into place; report `fetched`, all together or piece by piece.
struct Fetch { std::vector<PageNumber> pages; bool urgent; };
/// Take these out of the guest's view; nothing to report.
struct Unmap { std::vector<PageNumber> pages; };
/// Take them out of the guest's view, then read them, then store what changed; report `stored` or `store_failed`.
struct Evict { std::uint64_t ticket; std::vector<PageNumber> pages; };
/// Take these out of the file; report `punched`.
struct Punch { std::uint64_t ticket; std::vector<PageNumber> pages; };
/// To be carried out in their order: Unmap, Evict's first step and Punch among themselves, too.
using Action = std::variant<Map, Fetch, Unmap, Evict, Punch>;
using Actions = std::vector<Action>;

class PageTable {
  static constexpr std::uint32_t none = ~std::uint32_t{0};

 public:
  /// All pages are remote at first.
  explicit PageTable(const TableLimits& limits);

  /// Somebody waits for `page`, whichever trap it was: a report may be older than the page's state.
  void fault(PageNumber page, Actions& out);
  void fetched(std::span<const PageNumber> pages, Actions& out);
  void stored(std::uint64_t ticket, Actions& out);
  /// The pages stay. Nothing more is evicted until resume().
  void store_failed(std::uint64_t ticket, Actions& out);
  void punched(std::uint64_t ticket, Actions& out);
  void resume(Actions& out);
  void set_local_limit(std::uint64_t pages, Actions& out);
  /// The same, but room is not made before the next event.
  void set_local_limit(std::uint64_t pages);
  /// Nobody waits for these yet: fetches them, in this order, as far as there is room. Returns how many were looked at.
  std::size_t prefetch(std::span<const PageNumber> pages, Actions& out);
  /// They shall be here: how many of them, from the first on, are on their way or in the file; there is no room for the others.
  /// `here`: those of them that are in the file and are not being evicted.
  std::size_t bring(std::span<const PageNumber> pages, std::vector<PageNumber>& here, Actions& out);
  /// At the start: these are in the file already (a restored image).
  void adopt_local(const PageRun& run);

  /// In which order pages were in use: what an image remembers of it is in use after a restore, too. Taken down in pieces, between which
  /// the order may change: what moved meanwhile may stand further back than it should.
  class Recency {
   public:
    explicit Recency(std::uint64_t pages) : older_(pages, none), listed_(pages) {}
    /// The last one seen in use first.
    std::vector<PageNumber> pages() const;

   private:
    friend PageTable;
    std::vector<std::uint32_t> older_;
    std::vector<bool> listed_;
    std::uint32_t newest_[2] = {none, none};
  };
  /// Of this run of pages.
  void take_down(const PageRun& run, Recency& to) const;

  std::uint64_t local_limit() const { return local_limit_; }
  PageState state(PageNumber page) const { return entries_[page].state; }
  std::uint64_t pages() const { return entries_.size(); }
  /// Still on its way out by this eviction: nobody has used it since it was taken out of view.
  bool leaves_by(std::uint64_t ticket, PageNumber page) const { return entries_[page].state == PageState::evicting && entries_[page].ticket == ticket; }
  /// The page's content is nowhere but in remote memory, or soon will be.
  bool needs_remote(PageNumber page) const { return !here_.test(page); }
  /// All others.
  const PageBits& here() const { return here_; }

  struct Counts {
    std::uint64_t in_file = 0, mapped = 0, unmapped = 0, fetching = 0, evicting = 0, waiting = 0, over_limit = 0;
    std::uint64_t faults = 0, minor_faults = 0, room_waits = 0, paged_in = 0, paged_out = 0, evictions_undone = 0;
  };
  Counts counts() const;

 private:
  struct Entry {
    PageState state = PageState::remote;
    bool waited = false;        ///< remote: for room; punching: for the end of it
    std::uint32_t ticket = 0;   ///< of the eviction under way
    std::uint32_t older = none, newer = none;
  };
  struct List {
    std::uint32_t oldest = none, newest = none;
    std::uint64_t size = 0;
  };

  void push(List& list, PageNumber page);
  void unlink(List& list, PageNumber page);
  std::uint64_t room() const { return in_file_ < local_limit_ ? local_limit_ - in_file_ : 0; }
  std::uint64_t reserve() const;
  std::uint64_t batch() const;
  void fetch(PageNumber page, Actions& out);
  void map(PageNumber page, Actions& out);
  void admit_waiting(Actions& out);
  void balance(Actions& out);
  void look_at_oldest(std::uint64_t most, Actions& out);
  void evict_oldest(std::uint64_t most, Actions& out);

  TableLimits limits_;
  std::uint64_t local_limit_;
  std::vector<Entry> entries_;
  PageBits here_;              ///< local, unmapped or evicting
  List active_, inactive_;
  Prefetcher prefetcher_;
  std::deque<PageNumber> waiting_;  ///< faults that wait for room, in their order
  std::unordered_map<std::uint64_t, std::vector<PageNumber>> evictions_;
  std::uint32_t last_ticket_ = 0;
  std::uint64_t in_file_ = 0;  ///< or on the way into it
  std::uint64_t fetching_ = 0, evicting_ = 0;
  bool paused_ = false;
  Counts counts_;
};

}  // namespace yado::pager
