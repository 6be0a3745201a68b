#pragma once
// How far the checkpoint under way has come on each host, for people. Thread-safe.
//
// In pages of the guest, zeros included. A page that is written after it was saved is saved again: what is saved and what is to be saved
// may grow together.

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "pager/protocol.hpp"

namespace yado::pager {

class SaveWatch {
 public:
  struct Share {
    std::uint64_t saved = 0, left = 0;
  };

  /// From the beginning of a checkpoint to its end.
  class UnderWay {
   public:
    explicit UnderWay(SaveWatch& watch) : watch_(watch) {
      const std::lock_guard lock(watch_.mutex_);
      watch_.under_way_ = true;
    }
    ~UnderWay() {
      const std::lock_guard lock(watch_.mutex_);
      watch_.under_way_ = false;
      watch_.saved_here_ = 0;
      watch_.servers_.clear();
    }
    UnderWay(const UnderWay&) = delete;
    UnderWay& operator=(const UnderWay&) = delete;

   private:
    SaveWatch& watch_;
  };
  bool under_way() const {
    const std::lock_guard lock(mutex_);
    return under_way_;
  }

  void saved_here() {
    const std::lock_guard lock(mutex_);
    ++saved_here_;
  }
  /// A server's word. One that has no draft yet says nothing.
  void said(const std::string& host, const SessionStats& stats) {
    const std::lock_guard lock(mutex_);
    if (under_way_ && stats.saved_pages + stats.pending_pages > 0) servers_[host] = {stats.saved_pages, stats.pending_pages};
  }

  /// By host; this one has an empty name. `left_here`: what is here and unsaved.
  std::map<std::string, Share> shares(std::uint64_t left_here) const {
    const std::lock_guard lock(mutex_);
    std::map<std::string, Share> all = servers_;
    all[""] = {saved_here_, left_here};
    return all;
  }

 private:
  mutable std::mutex mutex_;
  bool under_way_ = false;                // guarded by mutex_
  std::uint64_t saved_here_ = 0;          // guarded by mutex_
  std::map<std::string, Share> servers_;  // guarded by mutex_
};

}  // namespace yado::pager
