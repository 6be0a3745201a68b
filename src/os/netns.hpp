#pragma once
// A network namespace held by a descriptor only: no name under /run/netns, nothing to sweep. When the last
// descriptor, thread and socket in it are gone the kernel takes it down, with every link in it — in the background,
// so a link may be seen on the other side for some milliseconds more (namespaces(7)).

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::os {

class Netns {
 public:
  Netns() = default;
  /// Takes over a descriptor of a namespace, for example one received over a socket.
  explicit Netns(Fd fd) : fd_(std::move(fd)) {}

  /// A new, empty namespace: only `lo`, and that down. Errc::permission without CAP_SYS_ADMIN.
  static Result<Netns> create();
  /// The namespace of the calling thread.
  static Result<Netns> current();
  static Result<Netns> of_process(pid_t pid);
  /// A path such as /run/netns/blue or /proc/7/ns/net. Errc::invalid_argument when it is no network namespace.
  static Result<Netns> open(const std::string& path);

  const Fd& fd() const { return fd_; }
  bool valid() const { return fd_.valid(); }
  /// The inode number: equal for two handles of one namespace.
  Result<std::uint64_t> inode() const;
  /// Another handle of the same namespace.
  Result<Netns> duplicate() const;
  /// Moves the calling thread, and it alone, into the namespace.
  Status enter() const;

 private:
  Fd fd_;
};

/// Runs `body` to its end on a thread of its own inside `netns`; the calling thread stays where it is. Sockets made
/// by `body` stay in the namespace whoever uses them later.
Status run_inside(const Netns& netns, const std::function<void()>& body);

/// The same for a function that returns Status or Result<T>.
template <class Function>
auto run_in(const Netns& netns, Function&& function) -> std::invoke_result_t<Function&> {
  std::optional<std::invoke_result_t<Function&>> result;
  if (auto entered = run_inside(netns, [&] { result.emplace(function()); }); !entered)
    return std::unexpected(entered.error());
  return std::move(*result);
}

}  // namespace yado::os
