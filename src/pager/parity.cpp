#include "pager/parity.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "pager/copies_regions.hpp"
#include "pager/parity_xor.hpp"

namespace yado::pager {

Parity::Parity(const Options& options, std::vector<Host> hosts)
    : options_(options), hosts_(std::move(hosts)), dead_(hosts_.size()), used_(hosts_.size()), pages_(options.pages),
      stripes_(stripes(options.pages, options.data)), groups_(stripes_.size() / region_pages) {
  std::vector<std::size_t> columns;  // of those that keep pages
  for (std::size_t host = 0; host < hosts_.size(); ++host)
    if (!is_image(host)) columns.push_back(host);
  YADO_CHECK(options.data >= 2 && columns.size() > options.data && hosts_.size() <= most_hosts, "{} columns over {} hosts", options.data, columns.size());
  for (std::size_t group = 0; group < groups_.size(); ++group)
    for (unsigned column = 0; column <= options.data; ++column)
      groups_[group].hosts.push_back(columns[(group + column) % columns.size()]);
}

// ---- transactions ----------------------------------------------------------------------------------------------------

void Parity::enqueue(std::size_t group, Transaction transaction) {
  groups_[group].waiting.push_back(std::move(transaction));
  if (!groups_[group].busy) run_next(group);
}

void Parity::run_next(std::size_t group) {
  Group& it = groups_[group];
  const bool was_busy = std::exchange(it.busy, !it.waiting.empty());
  busy_groups_ += static_cast<std::size_t>(it.busy) - static_cast<std::size_t>(was_busy);
  if (!it.busy) return tell_sent();
  const Transaction next = std::move(it.waiting.front());
  it.waiting.pop_front();
  next([this, group] { run_next(group); });
}

/// What has to be read: the old contents and the parity, or all others of the stripe. `again`: something was not to be had.
Parity::Cells Parity::plan(Change& change, bool again) {
  using Way = Change::Way;
  std::set<std::uint32_t> offsets;
  for (const auto& [cell, item] : change.items) offsets.insert(cell.offset);
  Cells all;
  for (const std::uint32_t offset : offsets) {
    const Cells cells = change.cells_at(offset);
    const Cell parity{options_.data, offset};
    Cells old, rest = others(change.group, offset, cells);
    for (const Cell cell : cells)
      if (in_stripe(change.group, cell)) old.insert(cell);
    old.insert(parity);
    const bool delta = all_readable(change.group, old), from_others = all_readable(change.group, rest);
    Way& way = change.ways[offset];
    if (!host_lives(change.group, options_.data))
      way = Way::none;
    else if (delta && (!from_others || old.size() < rest.size()))
      way = Way::delta;
    else
      way = from_others ? Way::from_others : Way::none;
    Cells needed = way == Way::delta ? old : way == Way::from_others ? rest : Cells{};
    if (again) std::erase_if(needed, [&](Cell cell) { return change.read.of.contains(cell); });
    all.merge(needed);
  }
  return all;
}

void Parity::change(const std::shared_ptr<Change>& change) {
  if (change->items.empty()) return std::exchange(change->done, nullptr)();
  if (const Cells held = held_in(*change); !held.empty()) {
    if (held_->aside.size() >= options_.most_held) return held_->waiting.push_back([this, change] { this->change(change); });
    return set_aside(held_, change->group, held, [this, change] {
      give_held();
      this->change(change);
    });
  }
  read(change->group, plan(*change, false), [this, change](Contents first) {
    change->read = std::move(first);
    // A content that was wrong, or a host that died: perhaps the other way. (What was read stays right.)
    const Cells missing = plan(*change, true);
    if (missing.empty()) return apply(change);
    read(change->group, missing, [this, change](Contents second) {
      change->read.of.merge(second.of);
      std::ranges::move(second.holds, std::back_inserter(change->read.holds));
      apply(change);
    });
  });
}

void Parity::apply(const std::shared_ptr<Change>& change) {
  using Way = Change::Way;
  const std::size_t group = change->group;
  const auto parities = std::make_shared<std::vector<std::array<std::byte, page_bytes>>>(change->ways.size());
  std::map<Cell, const std::byte*> writes;
  Cells removed;
  std::size_t next = 0;
  for (auto& [offset, way] : change->ways) {
    const Cell parity{options_.data, offset};
    auto& sum_of_all = (*parities)[next++];
    const auto include = [&](Cell cell) {
      const auto found = change->read.of.find(cell);
      if (found == change->read.of.end()) return void(way = Way::none);
      counts_.pages_read += found->second != zeros().data();
      xor_into(sum_of_all, found->second);
    };
    const Cells cells = change->cells_at(offset);
    if (way == Way::delta) {
      include(parity);
      for (const Cell cell : cells)
        if (in_stripe(group, cell)) include(cell);
    } else if (way == Way::from_others) {
      for (const Cell cell : others(group, offset, cells)) include(cell);
    }
    for (const Cell cell : cells) {
      const Change::Item& item = change->items.at(cell);
      Page& page = pages_[page_of(group, cell)];
      if (item.content != nullptr) {
        xor_into(sum_of_all, item.content);
        page.sum = item.sum;
        page.sum_known = true;
        writes[cell] = item.content;
      } else if (page.in_stripe) {
        removed.insert(cell);
      }
      page.in_stripe = item.content != nullptr;
      page.present = false;  // until it is written
    }
    Stripe& it = stripe(group, offset);
    const bool was_kept = !it.zero;
    it.zero = others(group, offset, {}).empty() || (way != Way::none && pager::is_zero(sum_of_all));
    it.valid = it.zero;      // otherwise, until it is written
    if (way != Way::none && !it.zero) {
      it.sum = sum_of(sum_of_all, options_.seed);
      writes[parity] = sum_of_all.data();
    } else if (was_kept && it.zero) {
      removed.insert(parity);
    }
  }
  remove(group, removed);
  const auto hold = std::make_shared<std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>>(change->hold, parities);
  write(group, writes, hold, [this, change] {
    for (const auto& [offset, way] : change->ways)
      if (!redundant(change->group, offset)) repair_soon(change->group);
    std::exchange(change->done, nullptr)();
  });
}

// ---- fetch -----------------------------------------------------------------------------------------------------------

void Parity::fetch(std::vector<PageNumber> pages, Arrived arrived) {
  const auto shared = std::make_shared<Arrived>(std::move(arrived));
  Piece zero_pages;
  std::map<std::size_t, std::vector<PageNumber>> by_group, outside;
  for (const PageNumber page : pages)
    if (pages_[page].zero)
      zero_pages.pages.push_back(page);
    else if (pages_[page].outside != nowhere)
      outside[pages_[page].outside].push_back(page);
    else
      by_group[group_of(page)].push_back(page);
  zero_pages.contents.resize(zero_pages.pages.size(), nullptr);
  if (!zero_pages.pages.empty()) (*shared)(std::move(zero_pages));
  for (const auto& [host, its] : outside) fetch_outside(host, its, shared);
  for (const auto& [group, its] : by_group) fetch_group(group, its, shared);
}

void Parity::fetch_group(std::size_t group, const std::vector<PageNumber>& pages, const std::shared_ptr<Arrived>& arrived) {
  Cells cells;
  for (const PageNumber page : pages)
    if (pages_[page].in_stripe) cells.insert(cell_of(page));
  read(group, cells, [this, group, pages, arrived](const Contents& got) {
    const std::vector<PageNumber> missing = deliver(pages, got, arrived);
    if (missing.empty()) return;
    enqueue(group, [this, group, missing, arrived](Done done) {
      Cells apart;
      for (const PageNumber page : missing)
        if (pages_[page].in_stripe) apart.insert(cell_of(page));
      reconstruct(group, apart, [this, group, missing, arrived, done = std::move(done)](const Contents& computed) {
        const auto lost = deliver(missing, computed, arrived);
        if (!lost.empty() && *arrived)
          std::exchange(*arrived, nullptr)(fail(Errc::unavailable, "page {} is lost: too few servers have a part of it", lost.front()));
        repair_soon(group);
        done();
      });
    });
  });
}

/// What there is of the pages; the others are returned.
std::vector<PageNumber> Parity::deliver(const std::vector<PageNumber>& pages, const Contents& contents,
                                        const std::shared_ptr<Arrived>& arrived) {
  Piece piece;
  std::vector<PageNumber> missing;
  for (const PageNumber page : pages) {
    const auto found = contents.of.find(cell_of(page));
    if (found == contents.of.end()) {
      missing.push_back(page);
      continue;
    }
    piece.pages.push_back(page);
    piece.contents.push_back(found->second);
    if (pages_[page].storing == 0) pages_[page].resident = true;
  }
  piece.hold = std::make_shared<std::vector<std::shared_ptr<const void>>>(contents.holds);
  if (!piece.pages.empty() && *arrived) (*arrived)(std::move(piece));
  admit_waiting();
  return missing;
}

// ---- store -----------------------------------------------------------------------------------------------------------

void Parity::store(Evicted evicted, Stored stored) {
  const auto storing = std::make_shared<Storing>();
  storing->evicted = std::move(evicted);
  storing->stored = std::move(stored);
  for (const PageNumber page : storing->evicted.piece.pages) {
    pages_[page].resident = false;
    ++pages_[page].storing;
  }
  waiting_for_room_.push_back(storing);
  admit_waiting();
}

void Parity::begin(const std::shared_ptr<Storing>& storing) {
  std::map<std::size_t, std::vector<std::size_t>> by_group;
  const std::vector<PageNumber>& pages = storing->evicted.piece.pages;
  for (std::size_t i = 0; i < pages.size(); ++i) by_group[group_of(pages[i])].push_back(i);
  storing->groups += by_group.size();
  for (const auto& [group, which] : by_group)
    enqueue(group, [this, group = group, storing, which = which](Done done) { store_group(group, storing, which, std::move(done)); });
  finished(storing);
}

void Parity::store_group(std::size_t group, const std::shared_ptr<Storing>& storing, const std::vector<std::size_t>& which,
                         Done done) {
  const Piece& piece = storing->evicted.piece;
  const auto change = std::make_shared<Change>();
  change->group = group;
  change->hold = piece.hold;
  std::vector<PageNumber> older;
  for (const std::size_t i : which) {
    Page& page = pages_[piece.pages[i]];
    const Cell cell = cell_of(piece.pages[i]);
    const std::byte* content = piece.contents[i];
    page.zero = content == nullptr;
    const bool same = !page.resend && page.sum_known && page.sum == storing->evicted.sums[i];
    const bool in_image = images_count_ && page.outside != nowhere && is_image(page.outside);
    const bool clean = content == nullptr ? !page.in_stripe : same && (in_image || (page.in_stripe && redundant(group, cell.offset)));
    counts_.pages_clean += clean && content != nullptr;
    counts_.pages_zero += content == nullptr;
    if (!clean || content == nullptr) older.push_back(piece.pages[i]);
    if (clean) continue;
    page.resend = false;
    change->items[cell] = {content, storing->evicted.sums[i]};
  }
  leave_outside(older, Copy::drop);
  change->done = [this, group, storing, which, done = std::move(done)] {
    for (const std::size_t i : which) {
      const PageNumber number = storing->evicted.piece.pages[i];
      Page& page = pages_[number];
      const Cell cell = cell_of(number);
      const bool had = page.zero || page.outside != nowhere || (page.in_stripe && (readable(group, cell) || reconstructible(group, cell)));
      if (!had) {
        storing->result = fail(Errc::unavailable, "page {}: too few of its servers are left", number);
        page.in_stripe = false;
      }
      --page.storing;
      if (page.storing == 0) set_counted(number, page.in_stripe);
      if (!had && page.storing == 0) page.resident = true;
    }
    finished(storing);
    done();
  };
  this->change(change);
}

void Parity::finished(const std::shared_ptr<Storing>& storing) {
  if (--storing->groups > 0) return;
  storing->stored(storing->result);
  admit_waiting();
  for (std::size_t host = 0; host < hosts_.size() && !leaving_.empty(); ++host) leave_on(host);
}

void Parity::kept(std::span<const PageNumber> pages) {
  for (const PageNumber page : pages)
    if (pages_[page].storing == 0) pages_[page].resident = true;
  admit_waiting();
}

bool Parity::lost(PageNumber number) const {
  const Page& page = pages_[number];
  const std::size_t group = group_of(number);
  const Cell cell = cell_of(number);
  if (page.zero || page.storing > 0) return false;
  if (page.outside != nowhere) return !hosts_[page.outside].pages->alive();
  return !page.in_stripe || (!readable(group, cell) && !reconstructible(group, cell));
}

}  // namespace yado::pager
