#pragma once
// A value that one coroutine waits for and that somebody else gives, later or earlier, on the same thread.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <optional>
#include <utility>

namespace yado::agent {

template <class T>
class Promise {
 public:
  explicit Promise(const boost::asio::any_io_executor& executor) : state_(std::make_shared<State>(executor)) {}

  /// The first value counts.
  void give(T value) const {
    if (state_->value) return;
    state_->value.emplace(std::move(value));
    state_->wake.cancel();
  }
  bool given() const { return state_->value.has_value(); }

  /// Any number of coroutines may wait.
  boost::asio::awaitable<T> get() const {
    const std::shared_ptr<State> state = state_;
    while (!state->value) {
      boost::system::error_code woken;
      co_await state->wake.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, woken));
    }
    co_return *state->value;
  }

 private:
  struct State {
    explicit State(const boost::asio::any_io_executor& executor)
        : wake(executor, boost::asio::steady_timer::time_point::max()) {}
    boost::asio::steady_timer wake;  ///< never expires; cancelled to wake who waits
    std::optional<T> value;
  };
  std::shared_ptr<State> state_;
};

}  // namespace yado::agent
