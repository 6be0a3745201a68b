#pragma once
// One duration for many connections: what is armed expires in the order in which it was armed, so a list and one timer
// are enough, and arming costs a splice instead of a heap operation and a system call.

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <list>
#include <memory>

#include "base/time.hpp"
#include "gate/task.hpp"

namespace yado::gate {

class TimeLimit {
 public:
  using Clock = std::chrono::steady_clock;

  /// What one connection holds of one TimeLimit at a time; disarms itself when it goes. Outlived by the TimeLimits.
  class Guard {
   public:
    /// `expired` runs in a turn of its own and may arm again.
    explicit Guard(std::function<void()> expired) : expired_(std::move(expired)), node_{this}, place_(node_.begin()) {}
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() { disarm(); }

    void arm(TimeLimit& limit) {
      disarm();
      due_ = Clock::now() + limit.duration_;
      limit_ = &limit;
      limit.armed_.splice(limit.armed_.end(), node_);
      limit.start();
    }
    void disarm() {
      if (limit_ != nullptr) node_.splice(node_.begin(), limit_->armed_, place_);
      limit_ = nullptr;
    }
    bool armed() const { return limit_ != nullptr; }

   private:
    friend class TimeLimit;
    std::function<void()> expired_;
    Clock::time_point due_{};
    TimeLimit* limit_ = nullptr;
    std::list<Guard*> node_;             // its one node, while it is not armed
    std::list<Guard*>::iterator place_;  // of that node: stays valid through splices
  };

  TimeLimit(boost::asio::io_context& io, nanoseconds duration) : duration_(duration), timer_(io.get_executor()) {}

  void stop() {
    stopped_ = true;
    timer_.cancel();
  }

 private:
  using Timer = boost::asio::basic_waitable_timer<Clock, boost::asio::wait_traits<Clock>, Executor>;

  void start() {
    if (running_ || stopped_ || armed_.empty()) return;
    running_ = true;
    timer_.expires_at(armed_.front()->due_);
    timer_.async_wait([this, alive = std::weak_ptr(alive_)](const boost::system::error_code&) {
      if (alive.expired()) return;
      running_ = false;
      if (stopped_) return;
      const auto now = Clock::now();
      while (!armed_.empty() && armed_.front()->due_ <= now) {
        Guard& guard = *armed_.front();
        guard.disarm();
        guard.expired_();
      }
      start();
    });
  }

  nanoseconds duration_;
  Timer timer_;
  std::list<Guard*> armed_;
  bool running_ = false;
  bool stopped_ = false;
  std::shared_ptr<int> alive_ = std::make_shared<int>();  // a handler may already be queued when this goes
};

}  // namespace yado::gate
