#include "workload/vm/tap.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include "net/rtnl.hpp"
#include "os/file.hpp"

namespace yado::vm {
namespace {

/// In the calling thread's network namespace.
Result<Tap> open_tap() {
  Tap tap;
  YADO_ASSIGN(tap.fd, os::open_path("/dev/net/tun", O_RDWR | O_NONBLOCK), "tap");
  ifreq request{};
  std::strcpy(request.ifr_name, "yvm%d");
  // With the virtio header in front of frames checksums and segmentation are left to whoever needs them done.
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  if (::ioctl(tap.fd.get(), TUNSETIFF, &request) != 0) return fail_errno("tap: TUNSETIFF");
  tap.name = request.ifr_name;
  return tap;
}

}  // namespace

Result<Tap> make_tap(const os::Netns& network, const std::string& bridge) {
  YADO_ASSIGN(Tap tap, os::run_in(network, open_tap), "network card");
  YADO_ASSIGN(net::Rtnl links, net::Rtnl::open(network), "network card");
  if (!bridge.empty()) YADO_TRY(links.set_master(tap.name, bridge), "network card");
  YADO_TRY(links.set_up(tap.name), "network card");
  return tap;
}

}  // namespace yado::vm
