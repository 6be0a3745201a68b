#include "lease/table.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace yado::lease {

milliseconds grace(milliseconds ttl) { return std::max(milliseconds(50), ttl / 8); }

void Table::grant(const WorkloadId& workload, Epoch epoch, milliseconds ttl) {
  Entry& entry = entries_[workload];
  YADO_CHECK(epoch > entry.epoch, "epoch {} granted after {}", epoch, entry.epoch);
  entry.older_until = std::max(entry.older_until, entry.current_until);
  entry.epoch = epoch;
  entry.ttl = ttl;
  entry.current_until = Instant{};
}

void Table::recover(const WorkloadId& workload, Epoch epoch, milliseconds ttl, bool older_is_over, Instant now) {
  const Instant worst = now + ttl + grace(ttl);
  entries_[workload] = Entry{.epoch = epoch,
                             .holder = older_is_over ? std::optional(epoch) : std::nullopt,
                             .ttl = ttl,
                             .current_until = worst,
                             .older_until = older_is_over ? Instant{} : worst};
}

Result<milliseconds> Table::renew(const WorkloadId& workload, Epoch epoch, Instant now) {
  auto found = entries_.find(workload);
  if (found == entries_.end()) return fail(Errc::not_found, "no lease of {} was ever granted", workload);
  Entry& entry = found->second;
  if (epoch != entry.epoch)
    return fail(Errc::stale_epoch, "{} belongs to epoch {}; {} is over", workload, entry.epoch, epoch);
  // Nobody gets a lease while an older owner may still run: the grant says who is next, not that it may start.
  if (now < entry.older_until)
    return fail(Errc::unavailable, "{}: an older owner may run for another {} ms", workload,
                static_cast<long>(to_ms(entry.older_until - now)));
  entry.holder = epoch;
  entry.current_until = std::max(entry.current_until, now + entry.ttl + grace(entry.ttl));
  return entry.ttl;
}

void Table::proved_dead(const WorkloadId& workload, Epoch epoch) {
  auto found = entries_.find(workload);
  if (found == entries_.end() || found->second.holder != epoch) return;
  // Whoever got the last lease got it after all earlier ones were over.
  found->second.current_until = found->second.older_until = Instant{};
}

Instant Table::free_at(const WorkloadId& workload) const {
  auto found = entries_.find(workload);
  return found == entries_.end() ? Instant{} : found->second.older_until;
}

}  // namespace yado::lease
