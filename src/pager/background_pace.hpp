#pragma once
// How much of a disk or a link what nobody waits for may take beside what somebody waits for. Thread-safe; no clock of its own.
//
// While wishes come, background work takes at most a quarter of the time, in small pieces: a wish finds the disk free, or waits for one
// such piece. When none has come for a while, background work takes all of it, in large pieces. Time, not a rate: whatever the
// disk is, a piece that took long is followed by a long pause.

#include <atomic>

#include "base/time.hpp"

namespace yado::pager {

class BackgroundPace {
 public:
  static constexpr std::size_t small_piece = 16, large_piece = 256;  ///< pages
  static constexpr nanoseconds quiet = std::chrono::milliseconds(25);  ///< without wishes: nobody is about to wish

  /// A workload that was just restored will: it counts as if somebody had.
  explicit BackgroundPace(Instant now) : last_wish_(now) {}

  void wished(Instant now) { last_wish_.store(now, std::memory_order_relaxed); }
  bool alone(Instant now) const { return now - last_wish_.load(std::memory_order_relaxed) >= quiet; }
  /// At most so many pages in the next piece.
  std::size_t piece(Instant now) const { return alone(now) ? large_piece : small_piece; }
  /// After a piece that took so long, until the next.
  nanoseconds pause(nanoseconds took, Instant now) const { return alone(now) ? nanoseconds(0) : 3 * took; }

 private:
  std::atomic<Instant> last_wish_;
};

}  // namespace yado::pager
