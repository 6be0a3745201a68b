#pragma once
// Wakes every coroutine that waits for "something changed". One thread; a waiter looks at what it waits for before it
// waits, and again when it is woken.

#include <set>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/time.hpp"

namespace yado::control {

class Pulse {
 public:
  explicit Pulse(boost::asio::io_context& io) : io_(io) {}

  /// Until fire(), or `at_most`. The Pulse must outlive its waiters.
  boost::asio::awaitable<void> wait(nanoseconds at_most) {
    boost::asio::steady_timer timer(io_, at_most);
    const Entry entry(waiting_, timer);
    co_await timer.async_wait(boost::asio::as_tuple(boost::asio::use_awaitable));
  }

  void fire() {
    for (boost::asio::steady_timer* timer : waiting_) timer->cancel();
  }

 private:
  struct Entry {
    Entry(std::set<boost::asio::steady_timer*>& all, boost::asio::steady_timer& timer) : set(all), mine(&timer) {
      set.insert(mine);
    }
    ~Entry() { set.erase(mine); }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    std::set<boost::asio::steady_timer*>& set;
    boost::asio::steady_timer* mine;
  };

  boost::asio::io_context& io_;
  std::set<boost::asio::steady_timer*> waiting_;
};

}  // namespace yado::control
