#pragma once
// How fast a save may write, so that others get their share of the disk: a token bucket that holds no more than one piece.

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace yado::pager {

/// The smaller of two limits in bytes per second, of which 0 is none.
constexpr std::uint64_t smaller_limit(std::uint64_t one, std::uint64_t other) {
  return one == 0 ? other : other == 0 ? one : std::min(one, other);
}

/// One thread.
class SavePace {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::uint64_t piece_bytes = 1 << 20;  ///< what is written between two looks

  explicit SavePace(std::uint64_t bytes_per_second) : rate_(bytes_per_second) {}  ///< 0: as fast as it goes

  bool limited() const { return rate_ != 0; }
  /// So much was written up to `now`: from when on more may be. Time that was not used is not saved up.
  Time after(std::uint64_t bytes, Time now) {
    if (!limited()) return now;
    const std::chrono::duration<double> takes(static_cast<double>(bytes) / static_cast<double>(rate_));
    return next_ = std::max(next_, now) + std::chrono::duration_cast<Time::duration>(takes);
  }

 private:
  std::uint64_t rate_;
  Time next_{};
};

}  // namespace yado::pager
