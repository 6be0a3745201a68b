#pragma once
// Being told by the kernel when somebody starts to listen on a TCP port: the tracepoint sock:inet_sock_set_state.

#include <cstdint>
#include <vector>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::os {

/// Becomes readable after a socket, in whatever network namespace, began to listen on `port`: a hint to look, not a
/// proof. Errors `permission` or `unsupported` where perf events or tracefs are not to be had: then look by turns.
class ListenWatch {
 public:
  static Result<ListenWatch> open(std::uint16_t port);
  /// One per CPU, for poll(2).
  const std::vector<Fd>& descriptors() const { return events_; }

 private:
  std::vector<Fd> events_;
};

}  // namespace yado::os
