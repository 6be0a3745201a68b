#pragma once
// The writing guest (bench/guest/writer.c): what it is made of, what it is told, and what it says. Whoever runs its VM, by
// QEMU alone or by the driver, hands over the console.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "workload/vm/console.hpp"
#include "workload/vm/spec.hpp"

namespace yado::bench {

/// How long the guest stood still, by its own measurement.
struct Standstill {
  double longest_ms = 0;  ///< between two looks at its own clock
  double p99_ms = 0;
  double away_ms = 0;     ///< what its own clock did not see, by the CMOS clock
  /// The most that the longest gap can have been; it was at least the larger of the two.
  double most_ms() const { return longest_ms + away_ms; }
};

/// `directory`: what tools/make-guest made of examples/writer.
vm::VmSpec writer_spec(const std::filesystem::path& directory, std::uint64_t memory_bytes);

/// Calls block, each for at most `guest_limit`. Errors: those of Console, `corrupt` for an answer that is none.
class WriterGuest {
 public:
  explicit WriterGuest(vm::Console& console) : console_(console) {}

  Status wait_up();
  /// Every page written.
  Status fill();
  /// From now on it rewrites the first `share` percent of its pages in turn; 0: nothing. Returns when it has written all of them once.
  Status rewrite(unsigned share_percent);
  /// MiB/s that it writes, over the next of its seconds that ends: for slow-downs.
  Result<double> rate();
  /// Since the last call. Takes up to two seconds, in which the guest writes nothing.
  Result<Standstill> standstill();
  /// Leaves a word in the console that the guest will answer as soon as it runs.
  Status ping(const std::string& word);
  /// Waits for that answer; when it came.
  Result<Instant> wait_pong(const std::string& word);
  /// Every word compared: `corrupt` with what was wrong.
  Status verify();

 private:
  /// The object after `"key": ` of the next line that has it.
  Result<std::string> answer(const std::string& key);
  vm::Console& console_;
};

}  // namespace yado::bench
