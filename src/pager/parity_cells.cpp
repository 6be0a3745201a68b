// What is where, and reading and writing it.

#include <algorithm>

#include "base/log.hpp"
#include "pager/copies_regions.hpp"
#include "pager/parity.hpp"
#include "pager/parity_xor.hpp"

namespace yado::pager {

std::uint64_t Parity::stripes(std::uint64_t pages, unsigned data) {
  const std::uint64_t group = region_pages * data;
  return (pages + group - 1) / group * region_pages;
}

std::size_t Parity::group_of(PageNumber page) const { return page / (region_pages * options_.data); }

Parity::Cell Parity::cell_of(PageNumber page) const {
  return {static_cast<unsigned>(page / region_pages % options_.data), static_cast<std::uint32_t>(page % region_pages)};
}

PageNumber Parity::page_of(std::size_t group, Cell cell) const {
  return (group * options_.data + cell.column) * region_pages + cell.offset;
}

bool Parity::is_page(std::size_t group, Cell cell) const {
  return cell.column < options_.data && page_of(group, cell) < pages_.size();
}

Parity::Stripe& Parity::stripe(std::size_t group, std::uint32_t offset) { return stripes_[group * region_pages + offset]; }
const Parity::Stripe& Parity::stripe(std::size_t group, std::uint32_t offset) const {
  return stripes_[group * region_pages + offset];
}

bool Parity::alive(std::size_t host) const {
  return !dead_[host] && hosts_[host].pages->alive() && (is_image(host) || hosts_[host].parity->alive());
}

bool Parity::in_stripe(std::size_t group, Cell cell) const {
  return is_page(group, cell) && pages_[page_of(group, cell)].in_stripe;
}

bool Parity::readable(std::size_t group, Cell cell) const {
  if (cell.column < options_.data) return pages_[page_of(group, cell)].present && host_lives(group, cell.column);
  const Stripe& it = stripe(group, cell.offset);
  return it.valid && (it.zero || host_lives(group, cell.column));
}

/// The pages in the stripe, without these.
Parity::Cells Parity::others(std::size_t group, std::uint32_t offset, const Cells& but) const {
  Cells cells;
  for (unsigned column = 0; column < options_.data; ++column)
    if (const Cell cell{column, offset}; in_stripe(group, cell) && !but.contains(cell)) cells.insert(cell);
  return cells;
}

bool Parity::all_readable(std::size_t group, const Cells& cells) const {
  return std::ranges::all_of(cells, [&](Cell cell) { return readable(group, cell); });
}

bool Parity::redundant(std::size_t group, std::uint32_t offset) const {
  return readable(group, {options_.data, offset}) && all_readable(group, others(group, offset, {}));
}

bool Parity::reconstructible(std::size_t group, Cell cell) const {
  return readable(group, {options_.data, cell.offset}) && all_readable(group, others(group, cell.offset, {cell}));
}

void Parity::mark(std::size_t group, Cell cell, bool there) {
  if (cell.column == options_.data)
    stripe(group, cell.offset).valid = there;
  else
    pages_[page_of(group, cell)].present = there;
}

// ---- reading ---------------------------------------------------------------------------------------------------------

/// Those of the cells that can be had; the others are marked as not there. A parity of zeros is not asked for.
void Parity::read(std::size_t group, const Cells& cells, Then then) {
  struct Reading {
    Contents contents;
    std::size_t under_way = 1;
    Then then;
  };
  const auto reading = std::make_shared<Reading>();
  reading->then = std::move(then);
  const auto finish_one = [reading] {
    if (--reading->under_way == 0) reading->then(std::move(reading->contents));
  };
  std::map<unsigned, std::vector<std::uint32_t>> by_column;
  for (const Cell cell : cells) {
    const bool parity = cell.column == options_.data;
    if (!readable(group, cell)) continue;
    if (parity && stripe(group, cell.offset).zero)
      reading->contents.of[cell] = zeros().data();
    else
      by_column[cell.column].push_back(cell.offset);
  }
  for (const auto& [column, offsets] : by_column)
    for (std::size_t at = 0; at < offsets.size(); at += most_data_pages) {
      const std::vector<std::uint32_t> some(offsets.begin() + static_cast<long>(at),
                                            offsets.begin() + static_cast<long>(std::min(at + most_data_pages, offsets.size())));
      const std::size_t number = groups_[group].hosts[column];
      const Host& host = hosts_[number];
      const bool parity = column == options_.data;
      std::vector<PageNumber> numbers;
      for (const std::uint32_t offset : some)
        numbers.push_back(parity ? group * region_pages + offset : page_of(group, {column, offset}));
      ++reading->under_way;
      (parity ? host.parity : host.pages)->get(runs_of(numbers), [this, group, column = column, number, some, reading, finish_one](const auto& answer) {
        take(group, column, number, some, answer, reading->contents);
        finish_one();
      });
    }
  finish_one();
}

void Parity::take(std::size_t group, unsigned column, std::size_t host, const std::vector<std::uint32_t>& offsets,
                  const Result<std::pair<Batch, Frame>>& answer, Contents& contents) {
  const auto give_up = [&](Cell cell) {
    if (groups_[group].hosts[column] == host) mark(group, cell, false);  // else it is elsewhere by now
  };
  if (!answer) {  // a living one that refuses will refuse again
    for (const std::uint32_t offset : offsets) give_up({column, offset});
    return;
  }
  std::size_t i = 0;
  const std::byte* data = answer->first.data.data();
  for (const KindRun& run : answer->first.runs)
    for (std::uint32_t k = 0; k < run.pages; ++k, ++i) {
      const Cell cell{column, offsets[i]};
      const std::byte* content = run.kind == PageKind::data ? data : zeros().data();
      if (run.kind == PageKind::data) data += page_bytes;
      const std::uint64_t sum =
          column == options_.data ? stripe(group, cell.offset).sum : pages_[page_of(group, cell)].sum;
      if (run.kind != PageKind::absent && sum_of(PageData(content, page_bytes), options_.seed) == sum) {
        contents.of[cell] = content;
        continue;
      }
      ++counts_.wrong_contents;
      log::error("pager: a server gave another content of {} {} than it was given", column == options_.data ? "stripe" : "page",
                 column == options_.data ? group * region_pages + cell.offset : page_of(group, cell));
      give_up(cell);
    }
  contents.holds.push_back(answer->second.hold);
}

/// Computes pages from the others of their stripes. What comes out is compared with its sum, too.
void Parity::reconstruct(std::size_t group, const Cells& cells, Then then) {
  Cells needed;
  for (const Cell cell : cells) {
    if (!reconstructible(group, cell)) continue;
    needed.merge(others(group, cell.offset, {cell}));
    needed.insert({options_.data, cell.offset});
  }
  read(group, needed, [this, group, cells, needed, then = std::move(then)](const Contents& got) {
    Contents out;
    for (const Cell cell : cells) {
      const Cell parity{options_.data, cell.offset};
      if (!needed.contains(parity) || !got.of.contains(parity)) continue;
      const auto content = std::make_shared<std::array<std::byte, page_bytes>>();
      std::copy_n(got.of.at(parity), page_bytes, content->begin());
      bool complete = true;
      for (const Cell other : others(group, cell.offset, {cell})) {
        const auto found = got.of.find(other);
        complete = complete && found != got.of.end();
        if (complete) xor_into(*content, found->second);
      }
      if (!complete || sum_of(*content, options_.seed) != pages_[page_of(group, cell)].sum) continue;
      ++counts_.pages_reconstructed;
      out.of[cell] = content->data();
      out.holds.push_back(content);
    }
    then(std::move(out));
  });
}

// ---- writing ---------------------------------------------------------------------------------------------------------

/// Marks each as there when its server has it. Nothing is sent to a dead host.
void Parity::write(std::size_t group, const std::map<Cell, const std::byte*>& cells, std::shared_ptr<const void> hold, Done then) {
  const auto under_way = std::make_shared<std::size_t>(1);
  const auto finish_one = [under_way, then = std::move(then)] {
    if (--*under_way == 0) then();
  };
  std::map<unsigned, std::vector<Cell>> by_column;
  for (const auto& [cell, content] : cells)
    if (host_lives(group, cell.column)) by_column[cell.column].push_back(cell);
  for (const auto& [column, its] : by_column)
    for (std::size_t at = 0; at < its.size(); at += most_data_pages) {
      const std::vector<Cell> some(its.begin() + static_cast<long>(at),
                                   its.begin() + static_cast<long>(std::min(at + most_data_pages, its.size())));
      const std::size_t number = groups_[group].hosts[column];
      PutBatch batch;
      for (const Cell cell : some) {
        batch.pages.push_back(column == options_.data ? group * region_pages + cell.offset : page_of(group, cell));
        batch.contents.push_back(cells.at(cell));
      }
      batch.hold = hold;
      counts_.pages_sent += batch.pages.size();
      ++*under_way;
      (column == options_.data ? hosts_[number].parity : hosts_[number].pages)
          ->put(std::move(batch), [this, group, some, number, finish_one](const Status& status) {
            for (const Cell cell : some)
              mark(group, cell, status && alive(number) && groups_[group].hosts[cell.column] == number);
            finish_one();
          });
    }
  finish_one();
}

void Parity::remove(std::size_t group, const Cells& cells) {
  std::map<unsigned, std::vector<PageNumber>> by_column;
  for (const Cell cell : cells)
    if (host_lives(group, cell.column))
      by_column[cell.column].push_back(cell.column == options_.data ? group * region_pages + cell.offset : page_of(group, cell));
  for (const auto& [column, numbers] : by_column) {
    const Host& host = hosts_[groups_[group].hosts[column]];
    (column == options_.data ? host.parity : host.pages)->drop(runs_of(numbers), [](const Status&) {});
  }
}

}  // namespace yado::pager
