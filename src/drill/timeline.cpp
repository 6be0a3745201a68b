#include "drill/timeline.hpp"

#include <algorithm>
#include <array>

#include <nlohmann/json.hpp>

namespace yado::drill {
namespace {

bool is_suspicion(std::string_view kind) {
  static constexpr std::array<std::string_view, 4> kinds{"suspect", "suspected", "host-silent", "owner-lost"};
  return std::ranges::find(kinds, kind) != kinds.end();
}

std::int64_t number_of(const nlohmann::json& fields, const char* key) {
  const auto found = fields.find(key);
  if (found == fields.end() || !found->is_string()) return 0;
  return std::strtoll(found->get_ref<const std::string&>().c_str(), nullptr, 10);
}

}  // namespace

std::optional<Moment> moment_of(const nlohmann::json& event) {
  if (!event.is_object()) return std::nullopt;
  const auto text = [&](const char* key) {
    const auto found = event.find(key);
    return found != event.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  const auto at = event.find("at_ns"), epoch = event.find("epoch"), fields = event.find("fields");
  if (at == event.end() || !at->is_number_integer() || text("kind").empty()) return std::nullopt;
  Moment moment{.kind = text("kind"), .workload = text("workload"), .host = text("host"),
                .at = Instant(nanoseconds(at->get<std::int64_t>()))};
  if (epoch != event.end() && epoch->is_number_unsigned()) moment.epoch = epoch->get<std::uint64_t>();
  if (fields != event.end() && fields->is_object()) {
    moment.ready_took = std::chrono::microseconds(number_of(*fields, "ready_us"));
    if (const auto way = fields->find("way"); way != fields->end() && way->is_string()) moment.way = way->get<std::string>();
  }
  return moment;
}

std::optional<Timeline> timeline_of(const std::vector<Moment>& moments, const std::vector<Sample>& samples,
                                    const std::string& workload, const std::string& host, std::uint64_t before,
                                    Instant injected) {
  const Sample* first = nullptr;
  for (const Sample& sample : samples)
    if (sample.correct && sample.epoch > before && sample.ended >= injected && (!first || sample.ended < first->ended))
      first = &sample;
  if (!first) return std::nullopt;

  const Instant end = first->ended;
  std::optional<Instant> suspect, grant;
  const Moment* ready = nullptr;
  for (const Moment& moment : moments) {
    if (moment.at < injected || moment.at > end) continue;
    const bool ours = moment.workload == workload;
    if (is_suspicion(moment.kind) && (ours || (moment.workload.empty() && moment.host == host)))
      suspect = suspect ? std::min(*suspect, moment.at) : moment.at;
    if (!ours || moment.epoch <= before) continue;
    // Several grants: the first one took the right away from the old owner; what failed after it is part of the raise.
    if (moment.kind == "grant") grant = grant ? std::min(*grant, moment.at) : moment.at;
    if (moment.kind == "ready" && moment.epoch == first->epoch) ready = &moment;
  }

  Timeline line;
  line.epoch = first->epoch;
  line.recovery = end - injected;
  if (const auto at = first->instance.find('@'); at != std::string::npos) line.host = first->instance.substr(at + 1);
  // Backwards from what is certain: each moment at most its successor, and at least its predecessor. What nobody reported
  // (control was dead) counts with the next moment that somebody did.
  const Instant ready_at = ready ? std::clamp(ready->at, injected, end) : end;
  const Instant raised_at = ready ? std::max(injected, ready_at - ready->ready_took) : ready_at;
  const Instant grant_at = grant ? std::min(*grant, raised_at) : raised_at;
  const Instant suspect_at = suspect ? std::min(*suspect, grant_at) : grant_at;
  line.suspect = suspect_at - injected;
  line.commit = grant_at - suspect_at;
  line.raise = raised_at - grant_at;
  line.ready = ready_at - raised_at;
  line.switched = end - ready_at;
  if (ready) line.way = ready->way, line.host = ready->host;
  return line;
}

}  // namespace yado::drill
