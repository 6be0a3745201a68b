#pragma once
// A thread that reads from a disk for others, step by step: between two steps of what can wait, what somebody waits for goes first.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace yado::pager {

class ReadQueue {
 public:
  /// One step, on the queue's thread; false: that was the last. What it throws ends the program.
  using Step = std::function<bool()>;
  enum class Urgency { somebody_waits, background };

  ReadQueue() : thread_([this] { work(); }) {}
  ReadQueue(const ReadQueue&) = delete;
  ReadQueue& operator=(const ReadQueue&) = delete;
  /// Ends after the step under way; what is left is not read.
  ~ReadQueue();

  /// Any thread. Of one urgency, one after the other.
  void add(Urgency urgency, Step step);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable added_;
  std::deque<Step> urgent_, background_;  // guarded by mutex_
  bool stop_ = false;                     // guarded by mutex_
  std::thread thread_;
};

}  // namespace yado::pager
