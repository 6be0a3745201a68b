#pragma once
// Blocking work (hashing, fsync, unpacking) away from the thread that answers. A few threads; who waits is a coroutine
// of the agent's io_context.

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <type_traits>

#include "agent/promise.hpp"

namespace yado::agent {

class Workers {
 public:
  explicit Workers(std::size_t threads) : pool_(threads) {}
  /// Waits for what is under way; what has not begun is dropped.
  ~Workers() {
    pool_.stop();
    pool_.join();
  }

  boost::asio::any_io_executor executor() { return pool_.get_executor(); }

  /// `work` runs on another thread: what it uses must live until then and be nobody else's meanwhile.
  template <class T>
  boost::asio::awaitable<T> run(std::function<T()> work) {
    const auto home = co_await boost::asio::this_coro::executor;
    const Promise<T> promise(home);
    std::function<void()> job = [promise, home, work = std::move(work),
                                 busy = boost::asio::make_work_guard(home)]() mutable {
      auto result = std::make_shared<T>(work());
      work = nullptr;  // what it captured is released before anybody hears of the result
      boost::asio::post(home, [promise, result] { promise.give(std::move(*result)); });
    };
    boost::asio::post(pool_, std::move(job));
    co_return co_await promise.get();
  }

 private:
  boost::asio::thread_pool pool_;
};

}  // namespace yado::agent
