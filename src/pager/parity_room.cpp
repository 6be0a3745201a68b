// Deaths and repair; room.

#include <algorithm>

#include "pager/copies_regions.hpp"
#include "pager/parity.hpp"
#include "pager/parity_xor.hpp"

namespace yado::pager {
namespace {
constexpr std::uint32_t repaired_at_once = 64;
/// Groups. What is on the wires for their sake stands in front of what a guest waits for.
constexpr unsigned most_repairs_under_way = 2;
constexpr unsigned dropped_at_once = 128;
}  // namespace

bool Parity::can_do_without(std::size_t host) const {
  for (PageNumber page = 0; page < pages_.size(); ++page) {
    const Page& it = pages_[page];
    if (it.zero || it.resident || it.storing > 0 || (it.outside != nowhere && it.outside != host)) continue;
    if (it.outside == host) return false;
    const std::size_t group = group_of(page);
    const auto without = [&](Cell cell) {
      const bool costs_nothing = cell.column == options_.data && stripe(group, cell.offset).zero;
      return readable(group, cell) && (costs_nothing || groups_[group].hosts[cell.column] != host);
    };
    Cell cell = cell_of(page);
    if (!it.in_stripe || without(cell)) continue;  // one that is lost already does not count
    const unsigned own = cell.column;
    for (cell.column = 0; cell.column <= options_.data; ++cell.column)
      if (cell.column != own && (cell.column == options_.data || in_stripe(group, cell)) && !without(cell)) return false;
  }
  return true;
}

void Parity::server_died(std::size_t host) {
  if (dead_[host]) return;
  dead_[host] = true;
  std::vector<PageNumber> gone;
  for (PageNumber page = 0; page < pages_.size(); ++page)
    if (pages_[page].outside == host) gone.push_back(page);
  leave_outside(gone, Copy::forget);
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    bool uses_it = false;
    for (unsigned column = 0; column <= options_.data; ++column) {
      if (groups_[group].hosts[column] != host) continue;
      uses_it = true;
      for (std::uint32_t offset = 0; offset < region_pages; ++offset) {
        const Cell cell{column, offset};
        if (column == options_.data ? !stripe(group, offset).zero : is_page(group, cell)) mark(group, cell, false);
      }
    }
    if (uses_it) repair_soon(group);
  }
  if (leaving_.contains(host)) left(host, {});
}

std::uint64_t Parity::pages_without_redundancy() const {
  std::uint64_t count = 0;
  for (PageNumber page = 0; page < pages_.size(); ++page)
    if (const Page& it = pages_[page]; it.storing == 0 && !it.resident)
      count += it.outside != nowhere ? !is_image(it.outside) : it.in_stripe && !redundant(group_of(page), cell_of(page).offset);
  return count;
}

std::uint64_t Parity::pages_at(std::size_t host) const {
  std::uint64_t count = used_[host];
  for (std::size_t i = 0; i < stripes_.size(); ++i)
    count += stripes_[i].valid && !stripes_[i].zero && groups_[i / region_pages].hosts.back() == host;
  return count;
}

/// What is missing on a host that takes the place of a dead one is computed there.
Result<std::size_t> Parity::add_server(PageServer* pages, PageServer* parity) {
  for (std::size_t host = 0; host < hosts_.size(); ++host) {
    if (alive(host)) continue;
    server_died(host);
    hosts_[host] = {pages, parity};
    dead_[host] = false;
    for (std::size_t group = 0; group < groups_.size(); ++group) repair_soon(group);
    admit_waiting();
    return host;
  }
  if (hosts_.size() == most_hosts) return fail(Errc::no_space, "a memory lies on at most {} servers at a time, an image on this host included", most_hosts);
  hosts_.push_back({pages, parity});
  dead_.push_back(false);
  used_.push_back(0);
  for (std::size_t group = 0; group < groups_.size(); ++group) repair_soon(group);
  return hosts_.size() - 1;
}

bool Parity::all_hosts_live() const {
  return std::ranges::all_of(groups_, [&](const Group& group) { return std::ranges::all_of(group.hosts, [&](std::size_t host) { return alive(host); }); });
}

/// By hosts that live and that the group does not use yet.
void Parity::replace_dead_hosts(std::size_t group) {
  std::vector<std::size_t>& hosts = groups_[group].hosts;
  for (unsigned column = 0; column <= options_.data; ++column) {
    if (alive(hosts[column])) continue;
    if (const auto host = place_for(group, column)) set_host(group, column, *host);
  }
}

void Parity::repair_soon(std::size_t group) {
  const std::vector<std::size_t>& hosts = groups_[group].hosts;
  std::size_t living = 0, own = 0;
  for (std::size_t host = 0; host < hosts_.size(); ++host) living += !is_image(host) && alive(host);
  for (const std::size_t host : hosts) own += alive(host);
  // As it is with a host dead and none to take its place, nothing can be made better.
  if (own < hosts.size() && living == own) return;
  if (std::exchange(groups_[group].repairing, true)) return;
  ++repairs_;
  to_repair_.push_back(group);
  repair_next();
}

/// A group where nothing is missing is done within the call.
void Parity::repair_next() {
  if (std::exchange(repairing_next_, true)) return;
  while (repairs_under_way_ < most_repairs_under_way && !to_repair_.empty()) {
    const std::size_t group = to_repair_.front();
    to_repair_.pop_front();
    ++repairs_under_way_;
    enqueue(group, [this, group](Done done) {
      replace_dead_hosts(group);
      groups_[group].repairing = false;  // what breaks from here on needs another one
      repair(group, 0, std::move(done));
    });
  }
  repairing_next_ = false;
}

/// Some stripes, and the next ones behind what waits already.
void Parity::repair(std::size_t group, std::uint32_t from, Done done) {
  Cells pages, parities, needed;
  const std::uint32_t end = std::min<std::uint32_t>(from + repaired_at_once, region_pages);
  for (std::uint32_t offset = from; offset < end; ++offset) {
    const Cell parity{options_.data, offset};
    const Cells all = others(group, offset, {});
    if (!readable(group, parity) && all_readable(group, all) && host_lives(group, options_.data)) {
      parities.insert(parity);
      needed.insert(all.begin(), all.end());
    }
    for (const Cell cell : all)
      if (!readable(group, cell) && host_lives(group, cell.column) && reconstructible(group, cell)) pages.insert(cell);
  }
  const Done next = [this, group, end, done = std::move(done)] {
    if (end < region_pages) {
      enqueue(group, [this, group, end](Done then) { repair(group, end, std::move(then)); });
    } else {
      --repairs_;
      --repairs_under_way_;
      repair_next();
    }
    done();
    tell_rebuilt();
  };
  reconstruct(group, pages, [this, group, parities, needed, next](const Contents& computed) {
    read(group, needed, [this, group, parities, computed, next](const Contents& got) {
      std::map<Cell, const std::byte*> writes(computed.of.begin(), computed.of.end());
      const auto contents = std::make_shared<std::vector<std::array<std::byte, page_bytes>>>(parities.size());
      std::size_t i = 0;
      for (const Cell parity : parities) {
        auto& content = (*contents)[i++];
        const Cells all = others(group, parity.offset, {});
        if (!std::ranges::all_of(all, [&](Cell cell) { return got.of.contains(cell); })) continue;
        for (const Cell cell : all) xor_into(content, got.of.at(cell));
        Stripe& it = stripe(group, parity.offset);
        it.sum = sum_of(content, options_.seed);
        it.zero = pager::is_zero(content);
        it.valid = it.zero;
        if (!it.zero) writes[parity] = content.data();
      }
      auto holds = std::make_shared<std::vector<std::shared_ptr<const void>>>(computed.holds);
      holds->push_back(contents);
      write(group, writes, holds, next);
    });
  });
}

// ---- room ------------------------------------------------------------------------------------------------------------

void Parity::set_counted(PageNumber number, bool counted) {
  Page& page = pages_[number];
  if (page.counted == counted) return;
  page.counted = counted;
  used_[groups_[group_of(number)].hosts[cell_of(number).column]] += counted ? 1 : -1;
}

/// Room for all of it, or none is taken.
bool Parity::reserve(const Evicted& evicted) {
  std::vector<PageNumber> taken;
  for (std::size_t i = 0; i < evicted.piece.pages.size(); ++i) {
    const PageNumber number = evicted.piece.pages[i];
    if (evicted.piece.contents[i] == nullptr || pages_[number].counted) continue;
    const std::size_t host = groups_[group_of(number)].hosts[cell_of(number).column];
    set_counted(number, true);
    taken.push_back(number);
    if (!alive(host) || used_[host] <= hosts_[host].pages->quota_pages()) continue;
    for (const PageNumber page : taken) set_counted(page, false);
    return false;
  }
  return true;
}

void Parity::admit_waiting() {
  while (!waiting_for_room_.empty()) {
    const auto storing = waiting_for_room_.front();
    if (reserve(storing->evicted)) {
      waiting_for_room_.pop_front();
      begin(storing);
      continue;
    }
    if (drop_outside_duplicates() > 0) continue;
    if (drops_under_way_ > 0 || make_room() > 0) return;  // once more when they are done
    waiting_for_room_.pop_front();
    for (const PageNumber page : storing->evicted.piece.pages)
      if (--pages_[page].storing == 0) pages_[page].resident = true;
    storing->stored(fail(Errc::no_space, "no memory server has room left"));
  }
  tell_sent();
}

/// Pages that are in the memory file leave their stripes, where their host is full.
unsigned Parity::make_room() {
  std::map<std::size_t, std::vector<PageNumber>> by_group;
  unsigned found = 0;
  for (PageNumber looked = 0; looked < pages_.size() && found < dropped_at_once; ++looked) {
    const PageNumber page = hand_;
    hand_ = (hand_ + 1) % pages_.size();
    const std::size_t host = groups_[group_of(page)].hosts[cell_of(page).column];
    if (!pages_[page].resident || !pages_[page].counted || used_[host] < hosts_[host].pages->quota_pages()) continue;
    by_group[group_of(page)].push_back(page);
    ++found;
  }
  drops_under_way_ += static_cast<unsigned>(by_group.size());
  for (const auto& [group, pages] : by_group)
    enqueue(group, [this, group = group, pages = pages](Done done) {
      const auto change = std::make_shared<Change>();
      change->group = group;
      for (const PageNumber page : pages)
        if (pages_[page].resident && pages_[page].in_stripe) change->items[cell_of(page)] = {};
      change->done = [this, change, done = std::move(done)] {
        for (const auto& [cell, item] : change->items)
          if (const PageNumber page = page_of(change->group, cell); pages_[page].storing == 0) set_counted(page, false);
        counts_.duplicates_dropped += change->items.size();
        --drops_under_way_;
        done();
        admit_waiting();
      };
      this->change(change);
    });
  return found;
}

}  // namespace yado::pager
