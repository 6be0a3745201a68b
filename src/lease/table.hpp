#pragma once
// Control's side of the leases: who may run an `exclusive` workload, and when the last right is certainly over.

#include <map>
#include <optional>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/ids.hpp"

namespace yado::lease {

/// How much longer than the holder control waits. The holder's deadline counts from before its request was sent, so
/// this pays only for the difference of two clocks' rates (500 ppm at worst) and for the freeze itself taking effect
/// late: an eighth of the lease, at least 50 ms.
milliseconds grace(milliseconds ttl);

class Table {
 public:
  /// From now on `epoch` is the only one that may be renewed. Whoever held an older one may run until free_at().
  void grant(const WorkloadId& workload, Epoch epoch, milliseconds ttl);
  /// Control starts again and does not know when it last renewed: the worst case is assumed. `older_is_over`: the
  /// holder of `epoch` was already up, hence nobody older runs.
  void recover(const WorkloadId& workload, Epoch epoch, milliseconds ttl, bool older_is_over, Instant now);
  /// The length of the lease, or stale_epoch / not_found.
  Result<milliseconds> renew(const WorkloadId& workload, Epoch epoch, Instant now);
  /// Positive proof that the owner of `epoch` is dead. It is over for everybody if that owner had the last lease; of one
  /// that never got a lease it proves nothing about those before it.
  void proved_dead(const WorkloadId& workload, Epoch epoch);
  /// The moment at which every owner older than the current epoch is certainly frozen.
  Instant free_at(const WorkloadId& workload) const;
  void forget(const WorkloadId& workload) { entries_.erase(workload); }

 private:
  struct Entry {
    Epoch epoch;
    std::optional<Epoch> holder;  ///< whose lease was the last; none: nobody's, or not known
    milliseconds ttl{0};
    Instant current_until{};  ///< the current epoch's holder may run until then
    Instant older_until{};    ///< an older epoch's holder may
  };
  std::map<WorkloadId, Entry> entries_;
};

}  // namespace yado::lease
