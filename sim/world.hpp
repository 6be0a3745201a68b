#pragma once
// Simulated time, chance and network. One thread, one seed: the same seed gives the same run, to the last event.

#include <cstdint>
#include <functional>
#include <map>
#include <queue>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.hpp"

namespace yado::sim {

/// splitmix64: the same numbers on every machine, which the standard's distributions do not promise.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// In [low, high].
  std::int64_t between(std::int64_t low, std::int64_t high);
  bool chance(double probability) { return static_cast<double>(next() >> 11) * 0x1p-53 < probability; }
  nanoseconds duration(nanoseconds low, nanoseconds high) { return nanoseconds(between(low.count(), high.count())); }

 private:
  std::uint64_t state_;
};

using NodeName = std::string;

class World {
 public:
  explicit World(std::uint64_t seed) : random(seed) {}

  Instant now() const { return now_; }
  void at(Instant when, std::function<void()> what);
  void after(nanoseconds delay, std::function<void()> what) { at(now_ + delay, std::move(what)); }
  /// Runs until nothing is left or `end` is reached.
  void run(Instant end);

  /// One packet: lost if the way is cut when it leaves.
  void packet(const NodeName& from, const NodeName& to, std::function<void()> what);
  /// Part of a TCP connection: while the way is cut it is retransmitted, ever more slowly, and given up after 15 s.
  void send(const NodeName& from, const NodeName& to, std::function<void()> what);
  void cut(const NodeName& from, const NodeName& to) { cut_.insert({from, to}); }
  void heal(const NodeName& from, const NodeName& to) { cut_.erase({from, to}); }
  bool reaches(const NodeName& from, const NodeName& to) const { return !cut_.contains({from, to}); }

  /// A promise was broken. The first one counts; the run goes on so that the trace shows what followed.
  void violation(std::string what);
  const std::vector<std::string>& violations() const { return violations_; }

  /// Part of the trace: hashed always, kept as text when tracing.
  void trace(std::string_view what);
  std::uint64_t trace_hash() const { return hash_; }
  bool tracing = false;

  Random random;

 private:
  void retransmit(NodeName from, NodeName to, std::function<void()> what, nanoseconds pause, Instant give_up);
  struct Item {
    Instant when;
    std::uint64_t order;
    std::function<void()> what;
    bool operator<(const Item& other) const {
      return when != other.when ? when > other.when : order > other.order;
    }
  };
  Instant now_{};
  std::uint64_t order_ = 0;
  std::priority_queue<Item> queue_;
  std::set<std::pair<NodeName, NodeName>> cut_;
  std::vector<std::string> violations_;
  std::uint64_t hash_ = 0xcbf29ce484222325;
};

}  // namespace yado::sim
