// Which servers have room for what, counted here: requests are carried out in the order in which they are sent, so what
// was sent is where a server will be.

#include <algorithm>
#include <bit>

#include "pager/copies_regions.hpp"
#include "pager/remote_memory.hpp"

namespace yado::pager {
namespace {
/// Duplicates go in batches: one by one, every eviction would wait for a search.
constexpr unsigned dropped_at_once = 128;
}  // namespace

std::uint64_t Copies::quota(std::size_t server) const { return std::min(room_[server].limit, servers_[server]->quota_pages()); }

void Copies::set_limit(std::size_t server, std::uint64_t pages) {
  if (std::exchange(room_[server].limit, pages) < pages) rebuild_waiting();
}

/// `count` of those that have room for the page, or can make it; fewer when there are no more.
Copies::Servers Copies::targets(PageNumber page, unsigned count, Servers among) const {
  Servers chosen = 0;
  for (std::size_t i = 0; i < servers_.size() && std::popcount(chosen) < static_cast<int>(count); ++i) {
    const std::size_t at = (page / region_pages + i) % servers_.size();
    const Room& room = room_[at];
    const bool can_make_it = (entries_[page].occupied & bit(at)) != 0 || room.duplicates > 0;
    const bool fits = room.used < quota(at) || (room.used == quota(at) && can_make_it);
    if (fits && servers_[at]->writable()) chosen |= static_cast<Servers>(among & bit(at));
  }
  return chosen;
}

/// The same, `first` before all others, and takes the room.
Copies::Servers Copies::occupy(PageNumber page, unsigned count, Servers among, std::optional<std::size_t> first) {
  Servers to = first ? targets(page, count, among & bit(*first)) : Servers{0};
  if (const unsigned missing = count - static_cast<unsigned>(std::popcount(to)); missing > 0)
    to |= targets(page, missing, among & static_cast<Servers>(~to));
  set_occupied(entries_[page], entries_[page].occupied | to);
  for (std::size_t server = 0; server < servers_.size(); ++server)
    if ((to & bit(server)) != 0) make_room(server);
  return to;
}

void Copies::set_occupied(Entry& entry, Servers servers) {
  for (std::size_t server = 0; server < servers_.size(); ++server) {
    const bool before = (entry.occupied & bit(server)) != 0, after = (servers & bit(server)) != 0;
    room_[server].used += after - before;
    if (entry.resident) room_[server].duplicates += after - before;
  }
  entry.occupied = servers;
}

void Copies::set_resident(Entry& entry, bool resident) {
  if (entry.resident == resident) return;
  entry.resident = resident;
  for (std::size_t server = 0; server < servers_.size(); ++server)
    if ((entry.occupied & bit(server)) != 0) room_[server].duplicates += resident ? 1 : -1;
}

/// Until what is sent to the server fits: drops all copies of pages that are in the memory file, because one of two would
/// not make it clean either.
void Copies::make_room(std::size_t server) {
  if (room_[server].used <= quota(server)) return;
  std::map<Servers, std::vector<PageNumber>> drops;
  unsigned dropped = 0;
  for (PageNumber looked = 0; looked < entries_.size() && room_[server].duplicates > 0 && dropped < dropped_at_once; ++looked) {
    const PageNumber page = hand_;
    hand_ = (hand_ + 1) % entries_.size();
    const Entry& entry = entries_[page];
    if (!entry.resident || (entry.occupied & bit(server)) == 0) continue;
    forget_copies(page, drops);
    ++dropped;
  }
  for (auto& [from, pages] : drops) drop(from, std::move(pages));
}

/// None: of all.
void Copies::drop_duplicates_of(const PageBits* pages) {
  std::map<Servers, std::vector<PageNumber>> drops;
  for (PageNumber page = 0; page < entries_.size(); ++page)
    if (entries_[page].resident && entries_[page].occupied != 0 && (pages == nullptr || pages->test(page))) forget_copies(page, drops);
  for (auto& [from, dropped] : drops) drop(from, std::move(dropped));
}

/// Of a page that is in the memory file. An image keeps its copy: it costs nothing.
void Copies::forget_copies(PageNumber page, std::map<Servers, std::vector<PageNumber>>& drops) {
  Entry& entry = entries_[page];
  drops[entry.occupied].push_back(page);
  set_occupied(entry, 0);
  Servers read_only = 0;
  for (std::size_t i = 0; i < servers_.size(); ++i)
    if (!servers_[i]->writable()) read_only |= bit(i);
  entry.holders &= read_only;
  ++entry.version;  // also a copy that is on its way there
  ++counts_.duplicates_dropped;
}

void Copies::drop(Servers from, std::vector<PageNumber> pages) {
  if (pages.empty()) return;
  std::ranges::sort(pages);
  for (const PageNumber page : pages)
    set_occupied(entries_[page], entries_[page].occupied & static_cast<Servers>(~from));
  for (std::size_t server = 0; server < servers_.size(); ++server)
    if ((from & bit(server)) != 0 && servers_[server]->alive() && servers_[server]->writable())
      servers_[server]->drop(runs_of(pages), [](const Status&) {});  // a copy nobody asks for any more does no harm
  to_rebuild_.merge(waiting_for_room_);
}

}  // namespace yado::pager
