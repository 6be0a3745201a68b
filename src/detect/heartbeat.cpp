#include "detect/heartbeat.hpp"

namespace yado::detect {

HeartbeatDetector::HeartbeatDetector(milliseconds period, nanoseconds first, Instant now)
    // Two periods may pass without a word (one lost heart-beat); ten are too many whatever was learnt.
    : gaps_({.unknown = 3 * period, .least = 2 * period, .most = 10 * period}), last_(now), first_(first) {}

void HeartbeatDetector::heard(Instant now) {
  if (first_ == nanoseconds(0)) gaps_.measured(now - last_);
  first_ = nanoseconds(0);
  last_ = now;
}

Instant HeartbeatDetector::silent_at() const {
  return last_ + (first_ != nanoseconds(0) ? first_ : gaps_.timeout() + gaps_.smoothed());
}

}  // namespace yado::detect
