#pragma once
// How long a server's answers take, and from when on its silence means something: RFC 6298's estimate of a retransmission time-out (smoothed
// time and deviation, never less than a second, in which two losses in a row are repaired) of answers instead of acknowledgements.

#include <algorithm>
#include <optional>

#include "base/time.hpp"

namespace yado::pager {

class AnswerTimes {
 public:
  void add(nanoseconds time) {
    if (!smoothed_) {
      smoothed_ = time;
      deviation_ = time / 2;
      return;
    }
    const nanoseconds off = time > *smoothed_ ? time - *smoothed_ : *smoothed_ - time;
    deviation_ += (off - deviation_) / 4;
    *smoothed_ += (time - *smoothed_) / 8;
  }
  /// Longer than an answer takes.
  nanoseconds suspicious() const { return std::max<nanoseconds>(1s, smoothed_.value_or(0ns) + 4 * deviation_); }

 private:
  std::optional<nanoseconds> smoothed_;
  nanoseconds deviation_{0};
};

}  // namespace yado::pager
