#pragma once
// A call that blocks, made on another thread while a coroutine waits for it.

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <functional>
#include <memory>

namespace yado::transfer {

/// Runs `work` on `executor` and returns on the caller's own. Is not interrupted by a cancellation. To shut down, join
/// the pool first and destroy the io_context then: a result is posted to it. The caller's frame may be gone before
/// `work` is, so `work` must own what it uses.
template <class T>
boost::asio::awaitable<T> blocking(boost::asio::any_io_executor executor, std::function<T()> work) {
  const auto home = co_await boost::asio::this_coro::executor;
  auto initiate = [executor, home](auto handler, std::function<T()> job) {
    // The guard keeps the io_context waiting for us: nothing else of it need be under way.
    auto run = [job = std::move(job), handler = std::move(handler), home,
                busy = boost::asio::make_work_guard(home)]() mutable {
      auto result = std::make_unique<T>(job());
      job = nullptr;  // what it owned goes on this thread, before anybody hears of the result
      auto deliver = [handler = std::move(handler), result = std::move(result)]() mutable {
        std::move(handler)(std::move(*result));
      };
      boost::asio::post(home, std::move(deliver));
    };
    boost::asio::post(executor, std::move(run));
  };
  co_return co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void(T)>(
      std::move(initiate), boost::asio::use_awaitable, std::move(work));
}

}  // namespace yado::transfer
