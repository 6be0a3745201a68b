#pragma once
// Where the time of a recovery went. The phases follow each other without gap and add up to the recovery time exactly:
//
//   injected ─suspect─▶ somebody suspects ─commit─▶ a new epoch is granted ─raise─▶ processes exist ─ready─▶ they
//   answer their readiness request ─switch─▶ the first correct answer to a client from the new epoch
//
// A moment that lies before its predecessor (a suspicion that came after the proof of death) counts as happening with
// it: its phase is 0. All times are CLOCK_BOOTTIME of one machine.

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/time.hpp"
#include "drill/load.hpp"
#include "model/ids.hpp"

namespace yado::drill {

/// What of an event matters here.
struct Moment {
  std::string kind;
  std::string workload;
  std::string host;
  std::uint64_t epoch = 0;
  Instant at;
  nanoseconds ready_took{0};  ///< of "ready": from processes to the readiness answer
  std::string way;            ///< of "ready"
};
/// Nothing for a line without kind or time.
std::optional<Moment> moment_of(const nlohmann::json& event);

struct Timeline {
  nanoseconds suspect{0}, commit{0}, raise{0}, ready{0}, switched{0};
  nanoseconds recovery{0};
  std::string way;        ///< cold, image or frozen
  std::uint64_t epoch = 0;  ///< the new owner's
  std::string host;
};

/// `before`: the epoch that owned the workload when the fault was injected into `host`. Nothing when no newer epoch
/// gave a correct answer: there was no failover.
std::optional<Timeline> timeline_of(const std::vector<Moment>& moments, const std::vector<Sample>& samples,
                                    const std::string& workload, const std::string& host, std::uint64_t before,
                                    Instant injected);

}  // namespace yado::drill
