#pragma once
// What a part that is being written holds: page -> newest record. Internal to src/image; thread-safe.
//
// 16 bytes per page of every region of 2 MiB in which there is one, 8 per region of the guest.

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "image/page.hpp"
#include "image/page_index.hpp"

namespace yado::image {

class PageTable {
 public:
  explicit PageTable(std::uint64_t guest_pages) : regions_((guest_pages + region_pages - 1) / region_pages) {}

  /// What does not count any more: what the page had, or `record` itself when that is of a higher round.
  std::optional<PageRecord> put(PageNumber page, PageRecord record, Round round) {
    const std::uint64_t number = value_of(page) / region_pages;
    const std::size_t at = value_of(page) % region_pages;
    const std::lock_guard lock(mutexes_[number % mutexes_.size()]);
    if (!regions_[number]) regions_[number] = std::make_unique<Region>();
    Region& region = *regions_[number];
    if (!region.present[at]) {
      region.present.set(at);
      region.entries[at] = {record.checksum, record.slot, round};
      return std::nullopt;
    }
    Entry& entry = region.entries[at];
    if (entry.round > round) return record;
    const PageRecord before{entry.slot, entry.checksum};
    entry = {record.checksum, record.slot, round};
    return before;
  }

  /// The record of a page lies elsewhere now, unless it is another record by now: then nothing changes and it is false.
  bool move(PageNumber page, Slot from, Slot to) {
    const std::uint64_t number = value_of(page) / region_pages;
    const std::size_t at = value_of(page) % region_pages;
    const std::lock_guard lock(mutexes_[number % mutexes_.size()]);
    if (!regions_[number] || !regions_[number]->present[at]) return false;
    Slot& slot = regions_[number]->entries[at].slot;
    if (slot != from) return false;
    slot = to;
    return true;
  }

  bool refers(PageNumber page, Slot slot) {
    const std::uint64_t number = value_of(page) / region_pages;
    const std::size_t at = value_of(page) % region_pages;
    const std::lock_guard lock(mutexes_[number % mutexes_.size()]);
    return regions_[number] && regions_[number]->present[at] && regions_[number]->entries[at].slot == slot;
  }

  /// Forgets the pages of which `keep(page, record)` is false. Nobody else is at the table meanwhile.
  template <class Keep>
  void filter(Keep&& keep) {
    for (std::uint64_t number = 0; number < regions_.size(); ++number)
      for (std::size_t at = 0; regions_[number] && at < region_pages; ++at)
        if (regions_[number]->present[at] && !keep(page_at(number, at), regions_[number]->record(at)))
          regions_[number]->present.reset(at);
  }

  /// `visit(page, record)` in ascending order. Nobody else is at the table meanwhile.
  template <class Visit>
  void each(Visit&& visit) const {
    for (std::uint64_t number = 0; number < regions_.size(); ++number)
      for (std::size_t at = 0; regions_[number] && at < region_pages; ++at)
        if (regions_[number]->present[at]) visit(page_at(number, at), regions_[number]->record(at));
  }

 private:
  static constexpr std::uint64_t region_pages = 512;
  static PageNumber page_at(std::uint64_t number, std::size_t at) { return PageNumber{number * region_pages + at}; }
  struct Entry {
    std::uint64_t checksum;
    Slot slot;
    Round round;
  };
  struct Region {
    std::array<Entry, region_pages> entries;
    std::bitset<region_pages> present;
    PageRecord record(std::size_t at) const { return {entries[at].slot, entries[at].checksum}; }
  };
  std::array<std::mutex, 64> mutexes_;            // [number % 64] guards
  std::vector<std::unique_ptr<Region>> regions_;  // [number]
};

}  // namespace yado::image
