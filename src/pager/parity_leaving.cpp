// Living hosts that leave: what they have goes to others before they give it up. And who takes a place in a group.

#include <algorithm>

#include "pager/copies_regions.hpp"
#include "pager/parity.hpp"

namespace yado::pager {
namespace {
constexpr std::size_t copied_at_once = 64;  // pages: what a guest waits for never stands behind more
}  // namespace

// ---- places ----------------------------------------------------------------------------------------------------------

std::vector<PageNumber> Parity::counted_in(std::size_t group, unsigned column) const {
  std::vector<PageNumber> counted;
  for (std::uint32_t offset = 0; offset < region_pages; ++offset)
    if (const Cell cell{column, offset}; is_page(group, cell) && pages_[page_of(group, cell)].counted) counted.push_back(page_of(group, cell));
  return counted;
}

/// One that lives, stays, has room, and is not used by the group yet.
std::optional<std::size_t> Parity::place_for(std::size_t group, unsigned column) const {
  const std::vector<std::size_t>& hosts = groups_[group].hosts;
  const std::size_t pages = counted_in(group, column).size();
  for (std::size_t i = 0; i < hosts_.size(); ++i) {
    const std::size_t host = (group + column + i) % hosts_.size();
    if (is_image(host) || !alive(host) || leaving_.contains(host) || std::ranges::find(hosts, host) != hosts.end()) continue;
    if (used_[host] + pages <= hosts_[host].pages->quota_pages()) return host;
  }
  return std::nullopt;
}

void Parity::set_host(std::size_t group, unsigned column, std::size_t host) {
  const std::vector<PageNumber> counted = counted_in(group, column);
  for (const PageNumber page : counted) set_counted(page, false);
  groups_[group].hosts[column] = host;
  for (const PageNumber page : counted) set_counted(page, true);
}

// ---- one group -------------------------------------------------------------------------------------------------------

/// In a transaction of the group.
void Parity::hand_over(std::size_t group, std::size_t host, std::function<void(std::optional<Error>)> done) {
  const auto& hosts = groups_[group].hosts;
  const auto place = std::ranges::find(hosts, host);
  if (place == hosts.end() || !alive(host)) return done({});  // died, and was replaced
  const auto handing = std::make_shared<Handing>();
  handing->group = group;
  handing->column = static_cast<unsigned>(place - hosts.begin());
  const auto to = place_for(group, handing->column);
  if (!to) return done(Error{Errc::no_space, "no other memory host has room for what it keeps"});
  handing->from = host;
  handing->to = *to;
  handing->server = hosts_[*to].pages;
  handing->done = std::move(done);
  for (std::uint32_t offset = 0; offset < region_pages; ++offset) {
    const Cell cell{handing->column, offset};
    const bool there = handing->column == options_.data ? !stripe(group, offset).zero : in_stripe(group, cell);
    if (there && readable(group, cell)) handing->cells.push_back(cell);
  }
  handing->reserved = counted_in(group, handing->column).size();
  used_[*to] += handing->reserved;
  copy_next(handing);
}

void Parity::copy_next(const std::shared_ptr<Handing>& handing) {
  if (handing->next == handing->cells.size() || handing->failed) return handed_over(handing);
  const std::size_t end = std::min(handing->next + copied_at_once, handing->cells.size());
  const Cells some(handing->cells.begin() + static_cast<long>(handing->next), handing->cells.begin() + static_cast<long>(end));
  handing->next = end;
  read(handing->group, some, [this, handing](const Contents& got) {
    if (got.of.empty()) return copy_next(handing);
    const bool parity = handing->column == options_.data;
    PutBatch batch;
    Cells cells;
    for (const auto& [cell, content] : got.of) {
      batch.pages.push_back(parity ? handing->group * region_pages + cell.offset : page_of(handing->group, cell));
      batch.contents.push_back(content);
      cells.insert(cell);
    }
    batch.hold = std::make_shared<std::vector<std::shared_ptr<const void>>>(got.holds);
    counts_.pages_sent += batch.pages.size();
    const Host& to = hosts_[handing->to];
    (parity ? to.parity : to.pages)->put(std::move(batch), [this, handing, cells](const Status& status) {
      if (!status) handing->failed = status.error();
      else handing->copied.insert(cells.begin(), cells.end());
      copy_next(handing);
    });
  });
}

void Parity::drop_copied(const Handing& handing, std::size_t host) {
  if (handing.copied.empty()) return;
  const bool parity = handing.column == options_.data;
  std::vector<PageNumber> numbers;
  for (const Cell cell : handing.copied) numbers.push_back(parity ? handing.group * region_pages + cell.offset : page_of(handing.group, cell));
  (parity ? hosts_[host].parity : hosts_[host].pages)->drop(runs_of(numbers), [](const Status&) {});
}

/// What was wrong on the one that leaves, or was not copied before its death, is computed.
void Parity::handed_over(const std::shared_ptr<Handing>& handing) {
  const std::size_t group = handing->group, to = handing->to;
  used_[to] -= handing->reserved;
  const bool lives = alive(to) && hosts_[to].pages == handing->server, stays = !leaving_.contains(to);
  if (!handing->failed && used_[to] + counted_in(group, handing->column).size() > hosts_[to].pages->quota_pages())
    handing->failed = Error{Errc::no_space, "another memory host has no room any more for what it keeps"};
  const bool taken = lives && stays && !handing->failed;
  if (taken) {
    set_host(group, handing->column, to);
    for (const Cell cell : handing->copied) mark(group, cell, true);
  }
  if (taken ? alive(handing->from) : lives) drop_copied(*handing, taken ? handing->from : to);
  repair_soon(group);
  if (!lives || !stays) return hand_over(group, handing->from, std::move(handing->done));  // to another one, then
  std::exchange(handing->done, nullptr)(handing->failed);
}

// ---- a host ----------------------------------------------------------------------------------------------------------

void Parity::leave(std::size_t host, std::function<void(Status)> done) {
  leaving_[host] = std::make_shared<Leaving>(Leaving{.done = std::move(done)});
  leave_on(host);
}

void Parity::stay(std::size_t host) {
  if (const auto found = leaving_.extract(host)) found.mapped()->done = nullptr;
  for (std::size_t group = 0; group < groups_.size(); ++group) repair_soon(group);  // it may take places again
}

/// What is done within a step may call this again.
void Parity::leave_on(std::size_t host) {
  const auto found = leaving_.find(host);
  if (found == leaving_.end()) return;
  const auto leaving = found->second;
  leaving->again = true;
  if (leaving->busy || std::exchange(leaving->running, true)) return;
  while (!leaving->busy && leaving->done && std::exchange(leaving->again, false)) leave_step(host, leaving);
  leaving->running = false;
}

void Parity::leave_step(std::size_t host, const std::shared_ptr<Leaving>& leaving) {
  if (!alive(host)) return left(host, {});
  const auto uses_it = [&](std::size_t group) { return std::ranges::find(groups_[group].hosts, host) != groups_[group].hosts.end(); };
  while (leaving->next < groups_.size() && !uses_it(leaving->next)) ++leaving->next;
  if (leaving->next == groups_.size()) return leave_outside_of(host, leaving);
  const std::size_t group = leaving->next++;
  leaving->busy = true;
  enqueue(group, [this, group, host, leaving](Done done) {
    hand_over(group, host, [this, host, leaving, done = std::move(done)](const std::optional<Error>& error) {
      if (error) leaving->problem = error;
      leaving->busy = false;
      done();
      leave_on(host);
    });
  });
}

/// Pages in no stripe, once no group uses it: they get into theirs, on others. What is in the memory file need not be anywhere else.
void Parity::leave_outside_of(std::size_t host, const std::shared_ptr<Leaving>& leaving) {
  if (leaving->problem) return left(host, std::unexpected(*leaving->problem));
  std::vector<PageNumber> here;
  std::uint64_t others = 0;
  bool storing = false;
  for (PageNumber number = 0; number < pages_.size() && loaded_outside_ > 0; ++number) {
    const Page& page = pages_[number];
    if (page.outside != host) continue;
    if (page.resident && page.storing == 0) here.push_back(number);
    else ++others;
    storing = storing || page.storing > 0;
  }
  leave_outside(here, Copy::drop);
  if (others == 0) return left(host, {});
  if (storing) return;  // once more when that is done
  if (others >= leaving->outside) return left(host, fail(Errc::no_space, "no other memory host has room for {} pages that it has from an image", others));
  leaving->outside = others;
  leaving->busy = true;
  take_in_loaded();
  when_rebuilt([this, host, leaving] {
    leaving->busy = false;
    leave_on(host);
  });
}

/// Of one on which nothing is any more nothing is known from here on, as if it had died.
void Parity::left(std::size_t host, const Status& status) {
  const auto leaving = leaving_.extract(host).mapped();
  if (status) dead_[host] = true;
  else for (std::size_t group = 0; group < groups_.size(); ++group) repair_soon(group);
  std::exchange(leaving->done, nullptr)(status);
}

}  // namespace yado::pager
