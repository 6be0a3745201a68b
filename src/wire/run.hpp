#pragma once
// Coroutines for synchronous callers such as the CLI.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/check.hpp"

namespace yado::wire {

/// Runs `io` until `work` is done and returns what it returned (or throws what it threw). Other work of `io` goes on
/// meanwhile and is left as it is. Not from inside a handler of the same `io`.
template <class T>
T run(boost::asio::io_context& io, boost::asio::awaitable<T> work) {
  std::exception_ptr error;
  bool done = false;
  [[maybe_unused]] std::conditional_t<std::is_void_v<T>, bool, std::optional<T>> result{};
  if constexpr (std::is_void_v<T>)
    boost::asio::co_spawn(io, std::move(work), [&](std::exception_ptr thrown) { error = thrown, done = true; });
  else
    boost::asio::co_spawn(io, std::move(work), [&](std::exception_ptr thrown, T value) {
      error = thrown, done = true;
      if (!thrown) result.emplace(std::move(value));
    });
  io.restart();
  while (!done) YADO_CHECK(io.run_one() > 0, "the coroutine waits for something that cannot happen any more");
  if (error) std::rethrow_exception(error);
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

}  // namespace yado::wire
