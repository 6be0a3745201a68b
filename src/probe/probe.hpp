#pragma once
// Is somebody there, and does it work? Two questions that need two probes:
//
//   reach()  the machine: one SYN. A SYN-ACK and a RST are both answers of a living kernel.
//   ready()  the application: one HTTP request, judged by status and content.
//
// Both are told by the kernel and never poll. One try each: who asks again, and when, is the caller's decision.

#include <string>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/cluster.hpp"
#include "model/workload.hpp"

namespace yado::probe {

enum class Heard {
  listening,  ///< SYN-ACK: the kernel lives and somebody has the port (who may be frozen)
  refused,    ///< RST: the kernel lives and nobody has the port
};

/// Success when the machine at `at` answered, whatever it answered. The connection is broken off at once (SO_LINGER 0),
/// so that nothing stays behind on either side.
/// Errors: timed_out (nothing came within `limit`; below 1 s that is exactly one SYN), unavailable (no way there: an
/// ICMP error or no route, neither of which comes from the machine itself), invalid_argument (no address), canceled.
boost::asio::awaitable<Result<Heard>> reach(boost::asio::io_context& io, Endpoint at, nanoseconds limit);

/// One request for `readiness.path` at `at`, as for the host name `host_name`. Success when status and content are as
/// expected. `readiness.start_limit` is not looked at.
/// Errors: refused (nobody listens: said at once), timed_out (no complete answer within `limit`), application (another
/// status, or the content is missing: the message shows the first 200 bytes of what came), unavailable, corrupt.
boost::asio::awaitable<Status> ready(boost::asio::io_context& io, Endpoint at, std::string host_name,
                                     Readiness readiness, nanoseconds limit);

}  // namespace yado::probe
