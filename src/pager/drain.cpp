#include "pager/drain.hpp"

#include <algorithm>

#include "base/log.hpp"
#include "pager/copies_regions.hpp"
#include "pager/protocol.hpp"

namespace yado::pager {
namespace {
/// Of one MOVE: its frame has room for as many runs.
constexpr std::size_t moved_at_once = most_runs;
constexpr unsigned most_moves_under_way = 2;
/// Guests' own fetches never wait behind more than so many pages.
constexpr std::size_t most_coming = most_data_pages;
/// A target that could not be reached so often in a row is not asked again.
constexpr unsigned most_failures = 2;

void put_behind(std::deque<PageNumber>& queue, const std::vector<PageNumber>& pages) { queue.insert(queue.end(), pages.begin(), pages.end()); }
std::vector<PageNumber> take_first(std::deque<PageNumber>& queue, std::size_t most) {
  const auto end = queue.begin() + static_cast<long>(std::min(queue.size(), most));
  const std::vector<PageNumber> first(queue.begin(), end);
  queue.erase(queue.begin(), end);
  return first;
}
}  // namespace

Drain::Drain(Copies& copies, std::size_t server, Ways ways, Done done)
    : copies_(copies), server_(server), ways_(std::move(ways)), done_(std::move(done)) {
  copies_.set_limit(server_, 0);
}

void Drain::cancel() {
  if (over_) return;
  over_ = true;
  copies_.set_limit(server_, ~std::uint64_t{0});
}

/// What is done in a step may settle something, and so call this again.
void Drain::go_on() {
  again_ = true;
  if (std::exchange(running_, true)) return;
  while (!over_ && std::exchange(again_, false)) step();
  running_ = false;
}

void Drain::step() {
  if (!copies_.server(server_).alive()) {
    if (moves_under_way_ == 0) end({});
    return;
  }
  look_at(std::exchange(later_, {}));
  bring(begin_moves(std::exchange(coming_, {}), Copies::all_servers));
  // What was looked at may need nothing: only what is under way calls this again.
  const auto can_look = [&] { return next_ < copies_.pages() && std::max(to_move_.size(), to_bring_.size()) < moved_at_once; };
  do {
    if (can_look()) {
      const auto pages = copies_.pages_on(server_, next_, moved_at_once);
      next_ = pages.size() < moved_at_once ? copies_.pages() : pages.back() + 1;
      look_at(pages);
    }
    place_some();
  } while (can_look());
  if (moves_under_way_ == 0 && later_.empty() && coming_.empty() && next_ == copies_.pages()) finish();
}

/// The way that is tried first comes first: what finds no room by it is left for the other one.
void Drain::place_some() {
  if (!ways_.bring_first) move_some();
  bring_some();
  if (ways_.bring_first) move_some();
}

/// Returns those that found no target.
std::vector<PageNumber> Drain::begin_moves(const std::vector<PageNumber>& pages, Copies::Servers avoided) {
  if (pages.empty()) return {};
  Copies::Moves moves = copies_.begin_moves(pages, server_, avoided);
  for (Copies::Moving& moving : moves.moves) move(std::move(moving));
  later_.insert(later_.end(), moves.busy.begin(), moves.busy.end());
  return std::move(moves.nowhere);
}

void Drain::look_at(const std::vector<PageNumber>& pages) { put_behind(ways_.bring_first ? to_bring_ : to_move_, pages); }

void Drain::move_some() {
  while (!to_move_.empty() && moves_under_way_ < most_moves_under_way) {
    const auto left = begin_moves(take_first(to_move_, moved_at_once), avoided_);
    if (ways_.bring_first) stuck_.insert(stuck_.end(), left.begin(), left.end());
    else put_behind(to_bring_, left);
  }
}

void Drain::bring_some() {
  while (!to_bring_.empty() && coming_.size() < most_coming) bring(begin_moves(take_first(to_bring_, most_coming - coming_.size()), Copies::all_servers));
}

void Drain::bring(std::vector<PageNumber> pages) {
  if (pages.empty()) return;
  std::ranges::sort(pages);
  const auto come = pages.begin() + static_cast<long>(ways_.bring(pages));
  coming_.insert(coming_.end(), pages.begin(), come);
  pages.erase(pages.begin(), come);
  if (ways_.bring_first) put_behind(to_move_, pages);
  else stuck_.insert(stuck_.end(), pages.begin(), pages.end());
}

void Drain::move(Copies::Moving moving) {
  ++moves_under_way_;
  const auto shared = std::make_shared<const Copies::Moving>(std::move(moving));
  // Its answer comes behind everything that was dropped there to make room: the target has it by now.
  copies_.server(shared->to).drop(runs_of(shared->pages), [this, shared](const Status& dropped) {
    if (!dropped || over_) return moved(*shared, dropped ? fail(Errc::canceled, "the server stays") : dropped);
    ways_.move(*shared, [this, shared](const Status& status) { moved(*shared, status); });
  });
}

void Drain::moved(const Copies::Moving& moving, const Status& status) {
  --moves_under_way_;
  if (status) {
    failures_[moving.to] = 0;
  } else if (copies_.server(moving.to).alive() && copies_.server(server_).alive()) {
    log::warn("pager: {} to {}: {}", copies_.server(server_).name(), copies_.server(moving.to).name(), status.error().text());
    if (++failures_[moving.to] >= most_failures) {
      avoided_ |= bit(moving.to);
      why_avoided_ = status.error();
    }
  }
  later_.insert(later_.end(), moving.pages.begin(), moving.pages.end());  // most of them are not there any more
  copies_.end_move(moving, status.has_value());
  go_on();
}

/// All pages were looked at and nothing is under way: those that found no room try once more, as long as that is of use.
void Drain::finish() {
  look_at(std::exchange(stuck_, {}));
  place_some();
  if (moves_under_way_ > 0 || !later_.empty() || !coming_.empty()) return;
  if (stuck_.empty() && copies_.pages_at(server_) > 0) {  // what a move to it left behind, of a page that was stored meanwhile
    next_ = 0;
    again_ = true;
    return;
  }
  if (stuck_.empty()) return end({});
  Error why{Errc::no_space, fmt::format("{} pages ({} MiB) found no room on other servers nor in the memory here: so much more is needed", stuck_.size(),
                                        (stuck_.size() * page_bytes + 1_MiB - 1) / 1_MiB)};
  if (why_avoided_) why = {why_avoided_->code, fmt::format("{}; {}", why.message, why_avoided_->message)};
  end(std::unexpected(why));
}

void Drain::end(const Status& status) {
  over_ = true;
  if (!status) copies_.set_limit(server_, ~std::uint64_t{0});
  done_(status);
}

}  // namespace yado::pager
