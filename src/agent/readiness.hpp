#pragma once
// Asking an instance its readiness request until it answers as it should: status AND content.
//
// One request at a time. Where nobody listens yet the kernel refuses at once; the next try then follows as soon as the
// kernel says that somebody began to listen (os::ListenWatch), or, where it cannot say so, after a sixteenth of the
// time waited so far. A request that was accepted is held by the listener's backlog until a worker takes it, so the
// answer to it is the earliest there can be.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include "agent/promise.hpp"
#include "base/error.hpp"
#include "model/cluster.hpp"

namespace yado::agent {

struct ReadinessWish {
  Service service;
  Endpoint endpoint;
  bool starting =
      false;  ///< cold: refusals and wrong answers are part of starting; else the first wrong answer decides
  nanoseconds limit{};
};

/// Error `application` with the last reason when `limit` passed, at once when `stop` is given (the instance exited).
boost::asio::awaitable<Status> wait_ready(boost::asio::io_context& io, ReadinessWish wish, Promise<std::string> stop);

}  // namespace yado::agent
