#pragma once
// Is a host that sends heart-beats silent for longer than its own habit explains?

#include "base/time.hpp"
#include "detect/rtt.hpp"

namespace yado::detect {

/// Learns the gaps between heart-beats of one host. A gap beyond the learnt bound is silence: a reason to suspect, never
/// a proof of death.
class HeartbeatDetector {
 public:
  /// `period`: the pace the agent was told to keep. `first`: how long the first one may take.
  HeartbeatDetector(milliseconds period, nanoseconds first, Instant now);

  void heard(Instant now);
  bool silent(Instant now) const { return now >= silent_at(); }
  Instant silent_at() const;
  Instant last_heard() const { return last_; }

 private:
  RttEstimator gaps_;
  Instant last_;
  nanoseconds first_;
};

}  // namespace yado::detect
