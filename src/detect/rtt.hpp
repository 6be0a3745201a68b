#pragma once
// Time-outs learnt from round trips (RFC 6298: smoothed mean plus four mean deviations).

#include <algorithm>

#include "base/time.hpp"

namespace yado::detect {

class RttEstimator {
 public:
  struct Bounds {
    nanoseconds unknown;  ///< the time-out before anything was measured
    nanoseconds least;    ///< never below: a scheduler's delay on a busy machine is not a death
    nanoseconds most;
  };

  explicit constexpr RttEstimator(Bounds bounds) : bounds_(bounds) {}

  void measured(nanoseconds rtt);
  nanoseconds timeout() const;
  /// The smoothed round trip; zero before the first.
  nanoseconds smoothed() const { return smoothed_; }

 private:
  Bounds bounds_;
  nanoseconds smoothed_{0};
  nanoseconds deviation_{0};
};

}  // namespace yado::detect
