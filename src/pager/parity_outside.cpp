// What was restored: pages that a host has outside of all stripes, and how they get into them. Checkpoints.

#include <algorithm>

#include "base/log.hpp"
#include "pager/parity.hpp"
#include "pager/parity_xor.hpp"

namespace yado::pager {
namespace {
constexpr std::size_t taken_in_at_once = 64;
constexpr unsigned dropped_at_once = 128;
}  // namespace

void Parity::adopt(std::span<const KindRun> runs, std::size_t host) {
  std::vector<PageNumber> useless;
  for (const KindRun& run : runs)
    for (PageNumber number = run.first; number < run.first + run.pages && number < pages_.size(); ++number) {
      Page& page = pages_[number];
      page.zero = run.kind == PageKind::zero && page.outside == nowhere;
      if (run.kind == PageKind::zero) continue;
      if (page.outside != nowhere) {  // the same twice: one is enough
        useless.push_back(number);
        continue;
      }
      page.outside = static_cast<std::uint8_t>(host);
      if (is_image(host)) continue;
      ++used_[host];
      ++loaded_outside_;
    }
  if (!useless.empty() && !is_image(host)) hosts_[host].pages->drop(runs_of(useless), [](const Status&) {});
}

/// Nothing is known of what that host has from here on.
void Parity::leave_outside(std::span<const PageNumber> pages, Copy copy) {
  std::map<std::size_t, std::vector<PageNumber>> drops;
  for (const PageNumber page : pages) {
    if (pages_[page].outside == nowhere) continue;
    const std::size_t host = std::exchange(pages_[page].outside, nowhere);
    if (is_image(host)) continue;
    --used_[host];
    --loaded_outside_;
    if (copy == Copy::drop && alive(host)) drops[host].push_back(page);
  }
  for (auto& [host, its] : drops) {
    std::ranges::sort(its);
    hosts_[host].pages->drop(runs_of(its), [](const Status&) {});
  }
}

void Parity::fetch_outside(std::size_t host, const std::vector<PageNumber>& pages, const std::shared_ptr<Arrived>& arrived) {
  hosts_[host].pages->get(runs_of(pages), [this, host, pages, arrived](const Result<std::pair<Batch, Frame>>& answer) {
    if (!answer && is_image(host)) {
      if (*arrived) std::exchange(*arrived, nullptr)(std::unexpected(answer.error()));
      return;
    }
    Piece piece;
    std::vector<PageNumber> wrong;
    std::map<std::size_t, std::vector<PageNumber>> elsewhere;  // by group: taken in meanwhile, or lost
    std::size_t i = 0;
    const std::byte* data = answer ? answer->first.data.data() : nullptr;
    for (const KindRun& run : answer ? answer->first.runs : std::vector<KindRun>{{pages.front(), static_cast<std::uint32_t>(pages.size()), PageKind::absent}})
      for (std::uint32_t k = 0; k < run.pages; ++k, ++i) {
        Page& page = pages_[pages[i]];
        const std::byte* content = run.kind == PageKind::data ? data : zeros().data();
        if (run.kind == PageKind::data) data += page_bytes;
        const std::uint64_t sum = run.kind == PageKind::absent ? 0 : sum_of(PageData(content, page_bytes), options_.seed);
        if (run.kind == PageKind::absent || (page.sum_known && page.sum != sum)) {
          if (answer) ++counts_.wrong_contents;
          if (answer && page.outside == host) wrong.push_back(pages[i]);
          elsewhere[group_of(pages[i])].push_back(pages[i]);
          continue;
        }
        page.sum = sum;
        page.sum_known = true;
        if (page.storing == 0) page.resident = true;
        piece.pages.push_back(pages[i]);
        piece.contents.push_back(content);
      }
    leave_outside(wrong, Copy::forget);
    if (answer) piece.hold = answer->second.hold;
    if (!piece.pages.empty() && *arrived) (*arrived)(std::move(piece));
    for (const auto& [group, its] : elsewhere) fetch_group(group, its, arrived);
    admit_waiting();
  });
}

// ---- into stripes ----------------------------------------------------------------------------------------------------

bool Parity::to_take_in(PageNumber number, std::size_t host) const {
  const Page& page = pages_[number];
  return page.outside == host && !page.resident && page.storing == 0 && !page.zero;
}

void Parity::take_in_loaded() {
  taken_in_ = 0;
  if (std::exchange(taking_in_, true)) return;
  take_in_next();
}

/// A piece at a time, so that guests' own fetches never wait behind more. What is in the memory file is taken in when it leaves that.
void Parity::take_in_next() {
  std::vector<PageNumber> pages;
  for (; (loaded_outside_ > 0 || !images_count_) && taken_in_ < pages_.size() && pages.size() < taken_in_at_once; ++taken_in_) {
    const std::uint8_t host = pages_[taken_in_].outside;
    if (host == nowhere || (is_image(host) && images_count_) || !to_take_in(taken_in_, host)) continue;
    if (!pages.empty() && (group_of(pages.front()) != group_of(taken_in_) || pages_[pages.front()].outside != host)) break;
    pages.push_back(taken_in_);
  }
  if (pages.empty()) {
    taking_in_ = false;
    return tell_rebuilt();
  }
  const std::size_t group = group_of(pages.front()), host = pages_[pages.front()].outside;
  enqueue(group, [this, group, host, pages = std::move(pages)](Done done) {
    take_in(group, host, pages, [this, done = std::move(done)] {
      done();
      take_in_next();
    });
  });
}

void Parity::take_in(std::size_t group, std::size_t host, std::vector<PageNumber> pages, Done done) {
  std::erase_if(pages, [&](PageNumber page) { return !to_take_in(page, host); });
  if (pages.empty()) return done();
  hosts_[host].pages->get(runs_of(pages), [this, group, host, pages, done = std::move(done)](const Result<std::pair<Batch, Frame>>& answer) {
    const auto change = std::make_shared<Change>();
    change->group = group;
    std::size_t i = 0;
    const std::byte* data = answer ? answer->first.data.data() : nullptr;
    for (const KindRun& run : answer ? answer->first.runs : std::vector<KindRun>())
      for (std::uint32_t k = 0; k < run.pages; ++k, ++i) {
        const std::byte* content = run.kind == PageKind::data ? data : zeros().data();
        if (run.kind == PageKind::data) data += page_bytes;
        Page& page = pages_[pages[i]];
        if (run.kind == PageKind::absent || page.outside != host || page.storing > 0) continue;
        const std::uint64_t sum = sum_of(PageData(content, page_bytes), options_.seed);
        const std::size_t to = groups_[group].hosts[cell_of(pages[i]).column];
        if ((page.sum_known && page.sum != sum) || used_[to] - (to == host) >= hosts_[to].pages->quota_pages()) continue;
        set_counted(pages[i], true);
        change->items[cell_of(pages[i])] = {content, sum};
      }
    if (answer) change->hold = answer->second.hold;
    change->done = [this, group, host, change, done] {
      std::vector<PageNumber> in;
      for (const auto& [cell, item] : change->items) in.push_back(page_of(group, cell));
      taken_in(group, host, in);
      done();
    };
    this->change(change);
  });
}

/// They were written into their stripes: what the host had before is not needed any more.
void Parity::taken_in(std::size_t group, std::size_t host, const std::vector<PageNumber>& pages) {
  std::vector<PageNumber> overwritten, elsewhere;
  for (const PageNumber number : pages) {
    Page& page = pages_[number];
    const Cell cell = cell_of(number);
    if (readable(group, cell) || reconstructible(group, cell)) {
      (groups_[group].hosts[cell.column] == host ? overwritten : elsewhere).push_back(number);
    } else {
      page.in_stripe = false;
      if (page.storing == 0) set_counted(number, false);
    }
  }
  leave_outside(overwritten, Copy::forget);
  leave_outside(elsewhere, Copy::drop);
}

/// Of pages that are in the memory file, where their host is full.
unsigned Parity::drop_outside_duplicates() {
  std::vector<PageNumber> found;
  for (PageNumber page = 0; loaded_outside_ > 0 && page < pages_.size() && found.size() < dropped_at_once; ++page) {
    const Page& it = pages_[page];
    if (it.resident && it.outside != nowhere && !is_image(it.outside) && used_[it.outside] >= hosts_[it.outside].pages->quota_pages()) found.push_back(page);
  }
  leave_outside(found, Copy::drop);
  counts_.duplicates_dropped += found.size();
  return static_cast<unsigned>(found.size());
}

// ---- for another main host -------------------------------------------------------------------------------------------

/// What is in the memory file is stored by whoever leaves.
void Parity::leave_images(bool leave) {
  images_count_ = !leave;
  if (leave) take_in_loaded();
}

bool Parity::is_on_no_server(PageNumber page) const {
  if (pages_[page].zero || pages_[page].storing > 0) return false;
  const auto its = owner(page);
  return !its || is_image(*its);
}

void Parity::when_sent(std::function<void()> then) {
  sent_.push_back(std::move(then));
  tell_sent();
}

void Parity::tell_sent() {
  if (busy_groups_ > 0 || !waiting_for_room_.empty()) return;
  for (const auto& then : std::exchange(sent_, {})) then();
}

// ---- when all is done ------------------------------------------------------------------------------------------------

void Parity::when_rebuilt(std::function<void()> then) {
  rebuilt_.push_back(std::move(then));
  tell_rebuilt();
}

void Parity::tell_rebuilt() {
  if (repairing()) return;
  for (const auto& then : std::exchange(rebuilt_, {})) then();
}

// ---- a checkpoint ----------------------------------------------------------------------------------------------------

/// The content that counts is in this host's log from here on, and a server's own, though perhaps the same again later, is not in its log as
/// changed. So that it is sent again then.
void Parity::at_cut(const PageBits& here) {
  for (PageNumber page = 0; page < pages_.size(); ++page)
    if (here.test(page) || pages_[page].storing > 0) pages_[page].resend = true;
}

std::optional<std::size_t> Parity::owner(PageNumber number) const {
  const Page& page = pages_[number];
  if (page.zero) return std::nullopt;
  if (page.outside != nowhere) return hosts_[page.outside].pages->alive() ? std::optional<std::size_t>(page.outside) : std::nullopt;
  const Cell cell = cell_of(number);
  if (page.in_stripe && readable(group_of(number), cell)) return groups_[group_of(number)].hosts[cell.column];
  return std::nullopt;
}

}  // namespace yado::pager
