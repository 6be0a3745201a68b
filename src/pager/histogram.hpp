#pragma once
// Durations, counted in buckets of about 6 %: enough for percentiles, constant in size.

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "base/time.hpp"

namespace yado::pager {

class Histogram {
 public:
  void add(nanoseconds duration) {
    ++counts_[bucket_of(static_cast<std::uint64_t>(std::max(duration, nanoseconds(0)).count()))];
    ++total_;
  }
  std::uint64_t total() const { return total_; }
  /// The least duration that `share` (0…1) of all do not exceed, to a bucket's accuracy; 0 for none.
  nanoseconds percentile(double share) const {
    const auto wanted = static_cast<std::uint64_t>(share * static_cast<double>(total_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i)
      if ((seen += counts_[i]) > 0 && seen >= wanted) return nanoseconds(static_cast<std::int64_t>(end_of(i)));
    return nanoseconds(0);
  }

 private:
  static constexpr unsigned fine_bits = 4;  ///< 16 buckets per power of two
  static constexpr std::size_t fine = 1U << fine_bits;
  static std::size_t bucket_of(std::uint64_t value) {
    if (value < fine) return static_cast<std::size_t>(value);
    const auto power = static_cast<unsigned>(std::bit_width(value)) - 1 - fine_bits;
    return fine * power + static_cast<std::size_t>(value >> power);
  }
  static std::uint64_t end_of(std::size_t bucket) {
    if (bucket < 2 * fine) return bucket;
    const std::size_t power = bucket / fine - 1;
    return ((bucket % fine + fine + 1) << power) - 1;
  }
  std::array<std::uint64_t, fine * 62> counts_{};
  std::uint64_t total_ = 0;
};

}  // namespace yado::pager
