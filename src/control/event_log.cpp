#include "control/event_log.hpp"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "api/calls.hpp"

namespace yado::control {

void EventLog::restore(std::vector<EventLine> lines, std::uint64_t last) {
  lines_.assign(std::make_move_iterator(lines.begin()), std::make_move_iterator(lines.end()));
  while (lines_.size() > kept_) lines_.pop_front();
  last_ = std::max(last, lines_.empty() ? 0 : lines_.back().sequence);
}

const EventLine& EventLog::append(const Event& event, Instant at, std::int64_t at_ms) {
  nlohmann::json json = event;
  json["seq"] = ++last_;
  json["at_ms"] = at_ms;
  json["at_ns"] = at.time_since_epoch().count();
  if (lines_.size() >= kept_) lines_.pop_front();
  lines_.push_back(EventLine{last_, api::dump(json)});
  changed_.fire();
  return lines_.back();
}

std::vector<EventLine> EventLog::after(std::uint64_t since, std::size_t limit) const {
  auto from = std::ranges::upper_bound(lines_, since, {}, &EventLine::sequence);
  const auto count = std::min(limit, static_cast<std::size_t>(lines_.end() - from));
  return {from, from + static_cast<std::ptrdiff_t>(count)};
}

std::uint64_t EventLog::before_newest(std::size_t count) const {
  if (count >= lines_.size()) return first_kept() - 1;
  return lines_[lines_.size() - count].sequence - 1;
}

}  // namespace yado::control
