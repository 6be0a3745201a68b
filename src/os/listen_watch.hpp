#pragma once
// Being told by the kernel when somebody starts to listen on a TCP port: the tracepoint sock:inet_sock_set_state.

#include <cstdint>
#include <vector>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::os {

/// One of its descriptors becomes readable once for every socket that, in whatever network namespace, begins to listen
/// on `port`: a hint to look, not a proof. poll(2) itself takes the event off. Errors `permission` or `unsupported` where perf events or tracefs are not to be had: then look by turns.
class ListenWatch {
 public:
  static Result<ListenWatch> open(std::uint16_t port);
  ListenWatch(ListenWatch&&) noexcept = default;
  ListenWatch& operator=(ListenWatch&&) = delete;
  ~ListenWatch();
  /// One per CPU, for poll(2).
  const std::vector<Fd>& descriptors() const { return events_; }

 private:
  ListenWatch() = default;
  std::vector<Fd> events_;
  std::vector<void*> buffers_;  ///< mapped only because an event without a buffer never sleeps in poll(2)
};

}  // namespace yado::os
