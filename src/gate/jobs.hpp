#pragma once
// Coroutines that run beside the data path (calls to control and agents, probes) and end with what started them.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <list>
#include <memory>

namespace yado::gate {

class Jobs {
 public:
  explicit Jobs(boost::asio::io_context& io) : io_(io) {}
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;
  ~Jobs() { cancel(); }

  /// `done` gets the result, unless the job was cancelled before.
  template <class T>
  void spawn(boost::asio::awaitable<T> work, std::function<void(T)> done) {
    auto job = std::make_shared<Job>();
    jobs_->push_back(job);
    boost::asio::co_spawn(io_, std::move(work), Done<T>{job, jobs_, std::move(done)});
  }

  void cancel() {
    const auto jobs = *jobs_;  // ending one may end others
    for (const auto& job : jobs) {
      job->canceled = true;
      job->cancellation.emit(boost::asio::cancellation_type::terminal);
    }
  }

 private:
  struct Job {
    boost::asio::cancellation_signal cancellation;
    bool canceled = false;
  };
  using List = std::list<std::shared_ptr<Job>>;

  /// Names its cancellation slot itself: with bind_cancellation_slot, co_spawn of Boost 1.81 takes a detour through the
  /// executor that ends in a signal that is gone if the coroutine ended meanwhile.
  template <class T>
  struct Done {
    using cancellation_slot_type = boost::asio::cancellation_slot;
    cancellation_slot_type get_cancellation_slot() const noexcept { return job->cancellation.slot(); }
    void operator()(std::exception_ptr thrown, T result) {
      jobs->remove(job);
      if (!job->canceled && !thrown) done(std::move(result));
    }
    std::shared_ptr<Job> job;
    std::shared_ptr<List> jobs;
    std::function<void(T)> done;
  };

  boost::asio::io_context& io_;
  std::shared_ptr<List> jobs_ = std::make_shared<List>();
};

}  // namespace yado::gate
