#include "gate/upstream.hpp"

#include <algorithm>

namespace yado::gate {

std::shared_ptr<Upstream> Pool::take(const Place& place) {
  auto found = idle_.find(place);
  if (found == idle_.end()) return nullptr;
  auto taken = std::move(found->second.back());
  found->second.pop_back();
  if (found->second.empty()) idle_.erase(found);
  taken->set_watcher(nullptr);
  taken->kept.reset();
  return taken;
}

void Pool::keep(std::shared_ptr<Upstream> upstream) {
  if (most_per_place_ == 0 || upstream->ended() || !upstream->unread().empty()) return upstream->close();
  auto& kept = idle_[upstream->place];  // never left empty
  if (kept.size() >= most_per_place_) return upstream->close();
  upstream->set_watcher(this);
  upstream->watch();
  upstream->kept.emplace([this, one = upstream.get()] { unasked(*one); });
  upstream->kept->arm(kept_time_);
  kept.push_back(std::move(upstream));
}

/// Nobody asked it anything: whatever arrives, it is of no use any more. The same when its time is over.
void Pool::unasked(Peer& peer) {
  const auto alive = peer.shared_from_this();  // also the guard whose expiry this may be
  auto& upstream = static_cast<Upstream&>(peer);
  auto found = idle_.find(upstream.place);
  if (found == idle_.end()) return;
  std::erase_if(found->second, [&](const auto& kept) { return kept.get() == &upstream; });
  if (found->second.empty()) idle_.erase(found);
  upstream.set_watcher(nullptr);
  upstream.close();
}

void Pool::retain(const std::function<bool(const Place&)>& wanted) {
  std::erase_if(idle_, [&](auto& entry) {
    if (wanted(entry.first)) return false;
    for (const auto& upstream : entry.second) {
      upstream->set_watcher(nullptr);
      upstream->kept.reset();
      upstream->reset();
    }
    return true;
  });
}

void Pool::clear() {
  retain([](const Place&) { return false; });
}

std::size_t Pool::size() const {
  std::size_t all = 0;
  for (const auto& [place, kept] : idle_) all += kept.size();
  return all;
}

}  // namespace yado::gate
