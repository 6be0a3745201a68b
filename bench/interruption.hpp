#pragma once
// What every demo has: lines with the time, and a Ctrl-C that leaves nothing behind.

#include <atomic>
#include <csignal>
#include <mutex>
#include <string>

#include "base/time.hpp"
#include "program.hpp"

namespace yado::bench {

/// "[  12.3 s] …"
class Progress {
 public:
  Progress();
  void operator()(const std::string& line) const;

 private:
  Instant begun_;
};

/// Ctrl-C ends the lab, waits until nothing of it is left, and only then this process. The main thread may be waiting
/// for anything meanwhile. Made before any other thread, which inherits the blocked signals.
class Interruption {
 public:
  Interruption();
  void set_lab(const Program& lab);
  /// Does not return once somebody has interrupted: what fails after that is no news.
  void let_through() const;

 private:
  [[noreturn]] void wait();

  sigset_t signals_{};
  std::atomic<bool> begun_ = false;
  std::mutex mutex_;
  os::Pidfd lab_;  // guarded by mutex_; may have ended long ago
};

}  // namespace yado::bench
