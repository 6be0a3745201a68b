#pragma once
// What control must not lose, as texts: the store knows neither records nor events, only that they are durable.
//
// One owner thread; calls block for as long as the disk takes. Errors: `no_space` (worth repeating when there is room),
// `permission`, `io`, `corrupt`. After an error nothing of that call is in the store, and everything before it still
// is.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"

namespace yado::state {

class Store {
 public:
  virtual ~Store() = default;

  /// Durable, also against a power loss, when it returns. Replaces what was there under that name.
  virtual Status put_workload(std::string_view name, std::string_view record) = 0;
  /// Removing a missing one is a success.
  virtual Status remove_workload(std::string_view name) = 0;
  /// Every record, by name.
  virtual Result<std::vector<std::string>> workloads() = 0;

  virtual Status put_meta(std::string_view key, std::string_view value) = 0;
  virtual Result<std::optional<std::string>> meta(std::string_view key) = 0;

  /// Survives the process at once, a power loss only with the next put: an event must not cost a failover an fsync.
  /// Drops the events below `first_kept`.
  virtual Status append_event(std::uint64_t sequence, std::string_view line, std::uint64_t first_kept) = 0;
  /// The newest `limit` events with their numbers, oldest first.
  virtual Result<std::vector<std::pair<std::uint64_t, std::string>>> events(std::size_t limit) = 0;
};

}  // namespace yado::state
