// Pages go from server to server, never through this host.

#include <algorithm>
#include <bit>

#include "pager/copies_regions.hpp"
#include "pager/remote_memory.hpp"

namespace yado::pager {

std::vector<PageNumber> Copies::pages_on(std::size_t server, PageNumber from, std::size_t most) const {
  std::vector<PageNumber> pages;
  for (PageNumber page = from; page < entries_.size() && pages.size() < most; ++page)
    if (const Entry& entry = entries_[page]; !entry.zero && ((entry.holders | entry.occupied) & bit(server)) != 0) pages.push_back(page);
  return pages;
}

Copies::Moves Copies::begin_moves(std::span<const PageNumber> pages, std::size_t from, Servers avoided) {
  Moves moves;
  std::map<std::size_t, Moving> by_target;
  std::map<Servers, std::vector<PageNumber>> drops;
  std::vector<PageNumber> of_no_use;
  for (const PageNumber page : pages) {
    Entry& entry = entries_[page];
    const bool held = (entry.holders & bit(from)) != 0;
    if (entry.zero || (!held && (entry.occupied & bit(from)) == 0)) continue;
    if (entry.storing > 0 || (!held && rebuilds_under_way_ > 0)) {
      moves.busy.push_back(page);
    } else if (!held) {
      of_no_use.push_back(page);
    } else if (entry.resident) {
      forget_copies(page, drops);
    } else if (const Servers to = occupy(page, 1, alive() & static_cast<Servers>(~(entry.occupied | avoided))); to == 0) {
      moves.nowhere.push_back(page);
    } else {
      const auto target = static_cast<std::size_t>(std::countr_zero(to));
      Moving& moving = by_target.try_emplace(target, Moving{{}, {}, from, target}).first->second;
      moving.pages.push_back(page);
      moving.versions.push_back(entry.version);
    }
  }
  drop(bit(from), std::move(of_no_use));
  for (auto& [servers, dropped] : drops) drop(servers, std::move(dropped));
  for (auto& [to, moving] : by_target) moves.moves.push_back(std::move(moving));
  return moves;
}

void Copies::end_move(const Moving& moving, bool moved) {
  std::vector<PageNumber> there, not_there;
  const Servers from = bit(moving.from), to = bit(moving.to);
  const bool to_lives = servers_[moving.to]->alive();
  for (std::size_t i = 0; i < moving.pages.size(); ++i) {
    Entry& entry = entries_[moving.pages[i]];
    const bool same = entry.version == moving.versions[i] && entry.storing == 0 && (entry.holders & from) != 0 && (entry.occupied & to) != 0;
    if (same && moved && to_lives) {
      entry.holders = static_cast<Servers>((entry.holders & ~from) | to);
      there.push_back(moving.pages[i]);
      if (short_of_copies(entry)) rebuild_later(moving.pages[i]);  // the other copy died meanwhile
    } else if ((entry.holders & to) == 0 && to_lives) {
      // What came there behind our back. With a store of it under way that store's end drops it.
      if (entry.storing == 0) not_there.push_back(moving.pages[i]);
      else set_occupied(entry, entry.occupied | to);
    }
  }
  drop(from, std::move(there));
  drop(to, std::move(not_there));
  rebuild_some();
}

}  // namespace yado::pager
