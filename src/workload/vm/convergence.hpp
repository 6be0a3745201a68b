#pragma once
// When a guest that is being left may stand still for the rest of its pages, and when it has to write less before. Pure.
//
//   what is left / what was sent a second  <=  the pause that is allowed     stop: it stands still now
//   a quarter less is left than a round ago                                  go on
//   else it writes as fast as pages go                                       half of the processor time that it had, then go on
//   it has the least time already, or nobody can take any away               stop: nothing will get better
//
// It ends: between two halvings, of which there are some, what is left shrinks round by round.

#include <algorithm>
#include <cstdint>

#include "base/time.hpp"

namespace yado::vm {

class Convergence {
 public:
  struct Options {
    nanoseconds pause{50'000'000};  ///< allowed for the pages that are left
    /// Of one processor. What still runs in QEMU besides the guest needs some.
    double least_cpus = 0.01;
    /// Standing still for so much takes less than its devices do; a round of no more says nothing about the way's speed. In pages.
    std::uint64_t little = 64, enough_to_measure = 1024;
  };
  struct Round {
    std::uint64_t sent = 0, left = 0;  ///< pages; left: written meanwhile
    nanoseconds took{0};
    double cpus = 0;  ///< processors that the guest used in it, on average
  };
  enum class Step { go_on, slow_down, stop };

  explicit Convergence(const Options& options) : options_(options) {}

  Step after(const Round& round) {
    ++rounds_;
    sent_ += round.sent;
    const std::uint64_t before = rounds_ == 1 ? round.sent : left_;
    left_ = round.left;
    measure(round);
    if (left_ <= options_.little) return Step::stop;
    // The first round sends many pages of zeros, which go fast: its rate alone is believed for little only.
    const bool rate_known = measured_ || left_ <= options_.enough_to_measure;
    if (rate_known && expected_pause() <= options_.pause) return Step::stop;
    if (left_ <= before - before / 4) return Step::go_on;
    const double had = cpus_ > 0 ? std::min(cpus_, round.cpus) : round.cpus;
    if (stuck_ || (cpus_ > 0 && cpus_ <= options_.least_cpus)) return Step::stop;
    cpus_ = std::max(had / 2, options_.least_cpus);
    return Step::slow_down;
  }
  /// Nobody can slow it down.
  void cannot_slow_down() { stuck_ = true, cpus_ = 0; }

  unsigned rounds() const { return rounds_; }
  std::uint64_t sent() const { return sent_; }
  std::uint64_t left() const { return left_; }
  /// What it may use; 0: as much as ever.
  double cpus() const { return cpus_; }
  nanoseconds expected_pause() const { return nanoseconds(static_cast<std::int64_t>(static_cast<double>(left_) * ns_per_page_)); }

 private:
  void measure(const Round& round) {
    const bool first = rounds_ == 1;
    if (round.sent == 0 || (!first && round.sent < options_.enough_to_measure)) return;
    measured_ = !first;
    ns_per_page_ = static_cast<double>(round.took.count()) / static_cast<double>(round.sent);
  }

  Options options_;
  unsigned rounds_ = 0;
  std::uint64_t sent_ = 0, left_ = 0;
  double cpus_ = 0, ns_per_page_ = 0;
  bool measured_ = false, stuck_ = false;
};

}  // namespace yado::vm
