#pragma once
#include <cstdint>
#include <deque>

#include "base/time.hpp"

namespace yado::plan {

/// At most `count` in any window of length `per` (a sliding window: exact, and small because counts are).
class RateLimit {
 public:
  bool admit(std::uint32_t count, milliseconds per, Instant now) {
    while (!past_.empty() && now - past_.front() >= per) past_.pop_front();
    if (past_.size() >= count) return false;
    past_.push_back(now);
    return true;
  }
  /// When the next one will be admitted, given that the last was not.
  Instant retry_at(milliseconds per) const { return past_.empty() ? Instant{} : past_.front() + per; }

 private:
  std::deque<Instant> past_;
};

}  // namespace yado::plan
