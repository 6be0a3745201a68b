#pragma once
// What images may take of this host's disk and links together while nobody waits for them: copies and merges.

#include <cstdint>
#include <mutex>

#include "pager/save_pace.hpp"

namespace yado::agent {

/// Thread-safe.
class ImagePace {
 public:
  explicit ImagePace(std::uint64_t bytes_per_second) : pace_(bytes_per_second) {}  ///< 0: as fast as it goes

  /// So much was copied: from when on more may be.
  pager::SavePace::Time after(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    return pace_.after(bytes, std::chrono::steady_clock::now());
  }

 private:
  std::mutex mutex_;
  pager::SavePace pace_;  // guarded by mutex_
};

}  // namespace yado::agent
