#include "pager/read_queue.hpp"

namespace yado::pager {

ReadQueue::~ReadQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  added_.notify_all();
  thread_.join();
}

void ReadQueue::add(Urgency urgency, Step step) {
  {
    const std::lock_guard lock(mutex_);
    (urgency == Urgency::somebody_waits ? urgent_ : background_).push_back(std::move(step));
  }
  added_.notify_one();
}

void ReadQueue::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    added_.wait(lock, [&] { return stop_ || !urgent_.empty() || !background_.empty(); });
    if (stop_) return;
    auto& queue = urgent_.empty() ? background_ : urgent_;
    Step& step = queue.front();  // others only add behind it, and a deque's elements stay where they are
    lock.unlock();
    const bool more = step();
    lock.lock();
    if (!more) queue.pop_front();
  }
}

}  // namespace yado::pager
