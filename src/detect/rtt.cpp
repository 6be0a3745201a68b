#include "detect/rtt.hpp"

namespace yado::detect {

void RttEstimator::measured(nanoseconds rtt) {
  rtt = std::max(rtt, nanoseconds(1));
  if (smoothed_ == nanoseconds(0)) {
    smoothed_ = rtt;
    deviation_ = rtt / 2;
    return;
  }
  const nanoseconds error = std::chrono::abs(smoothed_ - rtt);
  deviation_ = (3 * deviation_ + error) / 4;
  smoothed_ = (7 * smoothed_ + rtt) / 8;
}

nanoseconds RttEstimator::timeout() const {
  if (smoothed_ == nanoseconds(0)) return bounds_.unknown;
  return std::clamp(smoothed_ + 4 * deviation_, bounds_.least, bounds_.most);
}

}  // namespace yado::detect
