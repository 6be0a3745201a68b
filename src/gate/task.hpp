#pragma once
// The gate's coroutines and how they wait for something that is not I/O. One io_context, one thread: concrete
// executors, no locks, and no wake-up can be lost between the check of a condition and the wait for it.

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <utility>

namespace yado::gate {

using Executor = boost::asio::io_context::executor_type;
template <class T>
using Task = boost::asio::awaitable<T, Executor>;
using UseTask = boost::asio::use_awaitable_t<Executor>;
inline constexpr UseTask use_task{};
using Socket = boost::asio::basic_stream_socket<boost::asio::ip::tcp, Executor>;

/// `while (!condition) co_await signal.wait();` One waiter at a time.
class Signal {
 public:
  auto wait() {
    return boost::asio::async_initiate<const UseTask, void()>(
        [this](auto handler) { waiter_ = std::make_unique<Held<decltype(handler)>>(std::move(handler)); }, use_task);
  }
  /// The waiter goes on inside this call. Only from an I/O completion, where nothing else is half done.
  void wake_now() {
    if (auto waiter = std::move(waiter_)) waiter->go(true);
  }
  /// The waiter goes on in a later turn of the loop.
  void wake() {
    if (auto waiter = std::move(waiter_)) waiter->go(false);
  }
  bool has_waiter() const { return waiter_ != nullptr; }

 private:
  struct Waiter {
    virtual ~Waiter() = default;
    virtual void go(bool now) = 0;
  };
  template <class Handler>
  struct Held final : Waiter {
    explicit Held(Handler h) : handler(std::move(h)) {}
    void go(bool now) override {
      if (now)
        boost::asio::dispatch(std::move(handler));
      else
        boost::asio::post(std::move(handler));
    }
    Handler handler;
  };

  std::unique_ptr<Waiter> waiter_;
};

}  // namespace yado::gate
