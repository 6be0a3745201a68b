#pragma once
// The host's end of a guest's network card (linux/Documentation/networking/tuntap.rst).

#include <string>

#include "base/error.hpp"
#include "os/netns.hpp"

namespace yado::vm {

struct Tap {
  std::string name;
  os::Fd fd;  ///< what QEMU reads frames from and writes them to; non-blocking
};

/// A tap with a free name ("yvm0", …) in `network`, up, and a port of `bridge` unless that is empty. It is gone with
/// its last descriptor: nothing to sweep. Errors: `permission`, `unsupported` without /dev/net/tun, `not_found` for the bridge.
Result<Tap> make_tap(const os::Netns& network, const std::string& bridge);

}  // namespace yado::vm
