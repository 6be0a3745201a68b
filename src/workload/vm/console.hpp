#pragma once
// The guest's serial console: what it prints comes out here, what is sent is typed there. Belongs to one thread.
// Whoever owns it must read: QEMU writes character by character, each takes a kilobyte of the socket's room, and when
// that is full a guest's kernel spends 10 ms on every further character.

#include <functional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/fd.hpp"

namespace yado::vm {

class Console {
 public:
  Console() = default;
  /// Takes a connected stream socket, already non-blocking.
  explicit Console(os::Fd socket) : socket_(std::move(socket)) {}

  int fd() const { return socket_.get(); }
  /// What has come since, and what `hold` has put by; empty: nothing yet. Error `application` when QEMU has ended and all was read.
  Result<std::string> read();
  /// Takes from the socket what is there, for a later `read`, so that the guest need not wait; of more than 1 MiB the
  /// newest. False: QEMU has ended.
  bool hold();
  /// As much as fits now: how much that was. `application`: QEMU has ended.
  Result<std::size_t> offer(std::string_view text) const;
  /// All of it. Error `unavailable` when the guest does not take it.
  Status send(std::string_view text) const;
  /// The next whole line that contains `text`, without its end; lines before it are passed over. `log` gets
  /// everything that was read, as it comes. Errors: `timed_out` with the last line seen, `application`.
  Result<std::string> wait_for(std::string_view text, nanoseconds limit, const std::function<void(std::string_view)>& log = {});

 private:
  Result<std::string> receive();

  os::Fd socket_;
  std::string rest_;  ///< read, and not yet given to anybody
};

}  // namespace yado::vm
