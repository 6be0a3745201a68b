// What an image needs of pages that no server has as they are: read out of their stripes after the cut, while the guest runs on. Their content of
// the cut stays in the stripes until a store changes it, which is a transaction, so it is read in one, too; and a change sets it aside first.

#include <algorithm>

#include "pager/parity.hpp"

namespace yado::pager {
namespace {
constexpr std::size_t read_at_once = 64;  // pages: what a guest waits for never stands behind more
}  // namespace

/// Asked while the guest stands still: nothing is looked at but the page.
bool Parity::is_computed(PageNumber number) const {
  const Page& page = pages_[number];
  return !page.zero && page.outside == nowhere && (page.in_stripe || page.storing > 0) && !owner(number);
}

void Parity::hold_for_image(const std::vector<PageNumber>& pages) {
  release_held();
  if (pages.empty()) return;
  held_ = std::make_shared<Held>(PageBits(pages_.size()));
  for (const PageNumber page : pages) held_->wanted.set(page);
}

void Parity::release_held() {
  const auto held = std::exchange(held_, nullptr);
  if (!held) return;
  if (held->reader) std::exchange(held->reader, nullptr)(fail(Errc::canceled, "the image is not wanted any more"));
  for (const Done& change : std::exchange(held->waiting, {})) change();
}

void Parity::read_held(Arrived read) {
  if (!held_) return read(Piece{});
  held_->reader = std::move(read);
  give_held();
}

/// To whoever reads: what was set aside; more is read if that is nothing.
void Parity::give_held() {
  const auto held = held_;
  if (!held || !held->reader) return;
  if (held->failed) return std::exchange(held->reader, nullptr)(std::unexpected(*held->failed));
  Piece piece;
  const auto contents = std::make_shared<std::vector<std::unique_ptr<std::array<std::byte, page_bytes>>>>();
  for (auto at = held->aside.begin(); at != held->aside.end() && piece.pages.size() < most_data_pages; at = held->aside.erase(at)) {
    piece.pages.push_back(at->first);
    piece.contents.push_back(at->second->data());
    contents->push_back(std::move(at->second));
  }
  piece.hold = contents;
  if (piece.pages.empty()) {
    if (held->reading) return;
    if (const PageNumber first = held->wanted.next(held->from); first < pages_.size()) return read_more_held(held, first);
    held_ = nullptr;
  }
  std::exchange(held->reader, nullptr)(std::move(piece));
  for (const Done& change : std::exchange(held->waiting, {})) change();
}

void Parity::read_more_held(const std::shared_ptr<Held>& held, PageNumber first) {
  held->reading = true;
  const std::size_t group = group_of(first);
  enqueue(group, [this, held, group, first](Done done) {
    Cells cells;
    PageNumber page = held->wanted.next(first);
    for (; page < pages_.size() && group_of(page) == group && cells.size() < read_at_once; page = held->wanted.next(page + 1)) cells.insert(cell_of(page));
    held->from = page;
    set_aside(held, group, cells, [this, held, done = std::move(done)] {
      held->reading = false;
      done();
      give_held();
    });
  });
}

Parity::Cells Parity::held_in(const Change& change) const {
  Cells cells;
  for (const auto& [cell, item] : change.items)
    if (held_ && held_->wanted.test(page_of(change.group, cell))) cells.insert(cell);
  return cells;
}

/// In a transaction of the group. As they are by now on a server, perhaps, else computed.
void Parity::set_aside(const std::shared_ptr<Held>& held, std::size_t group, const Cells& cells, Done then) {
  read(group, cells, [this, held, group, cells, then = std::move(then)](const Contents& there) {
    Cells missing = cells;
    std::erase_if(missing, [&](Cell cell) { return there.of.contains(cell); });
    reconstruct(group, missing, [this, held, group, cells, there, then](const Contents& computed) {
      for (const Cell cell : cells) {
        const PageNumber page = page_of(group, cell);
        held->wanted.reset(page);
        const Contents& source = there.of.contains(cell) ? there : computed;
        const auto found = source.of.find(cell);
        if (found == source.of.end()) {
          held->failed = Error{Errc::unavailable, fmt::format("page {} is lost: too few servers have a part of it", page)};
          continue;
        }
        auto& content = held->aside[page] = std::make_unique<std::array<std::byte, page_bytes>>();
        std::copy_n(found->second, page_bytes, content->begin());
      }
      then();
    });
  });
}

}  // namespace yado::pager
