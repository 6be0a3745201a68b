#include "wire/run.hpp"

#include <gtest/gtest.h>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <stdexcept>

namespace yado::wire {
namespace {

namespace asio = boost::asio;

asio::awaitable<std::unique_ptr<int>> number(asio::io_context& io) {
  asio::steady_timer timer(io, std::chrono::nanoseconds(1));
  co_await timer.async_wait(asio::use_awaitable);
  co_return std::make_unique<int>(7);
}

asio::awaitable<void> thrower() {
  throw std::runtime_error("why");
  co_return;
}

TEST(RunTest, GivesBackTheValueOrTheExceptionAndCanBeUsedAgain) {
  asio::io_context io;
  EXPECT_EQ(*run(io, number(io)), 7);
  EXPECT_THROW(run(io, thrower()), std::runtime_error);
  EXPECT_EQ(*run(io, number(io)), 7);
}

TEST(RunTest, DoesNotWaitForOtherWork) {
  asio::io_context io;
  asio::steady_timer never(io, asio::steady_timer::time_point::max());
  bool ended = false;
  never.async_wait([&](const boost::system::error_code&) { ended = true; });
  EXPECT_EQ(*run(io, number(io)), 7);
  EXPECT_FALSE(ended);
}

}  // namespace
}  // namespace yado::wire
