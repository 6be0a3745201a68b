#pragma once
// The newest events, numbered, as the lines that `GET /v1/events` sends.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "base/time.hpp"
#include "control/pulse.hpp"
#include "model/calls.hpp"

namespace yado::control {

struct EventLine {
  std::uint64_t sequence = 0;
  std::string text;  ///< JSON without line break: seq, at_ms, at_ns and the event's own fields
};

class EventLog {
 public:
  EventLog(boost::asio::io_context& io, std::size_t kept) : kept_(kept), changed_(io) {}

  /// What the store still has, oldest first; and the last number that was ever given.
  void restore(std::vector<EventLine> lines, std::uint64_t last);
  /// `at`: when it was seen, by the clock of who saw it. The line is what the store keeps.
  const EventLine& append(const Event& event, Instant at, std::int64_t at_ms);

  /// At most `limit` lines with a higher number than `since`, oldest first.
  std::vector<EventLine> after(std::uint64_t since, std::size_t limit) const;
  /// The number after which the newest `count` lines come.
  std::uint64_t before_newest(std::size_t count) const;
  std::uint64_t last() const { return last_; }
  /// The lowest number that is still kept.
  std::uint64_t first_kept() const { return lines_.empty() ? last_ + 1 : lines_.front().sequence; }
  Pulse& changed() { return changed_; }

 private:
  std::size_t kept_;
  std::uint64_t last_ = 0;
  std::deque<EventLine> lines_;
  Pulse changed_;
};

}  // namespace yado::control
