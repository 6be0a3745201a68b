#pragma once
// The network of instances on one host.
//
//   other hosts                      host's network namespace                 instance's network namespace
//   ───────────▶ host address:port ─DNAT─▶ yado0 10.88.0.1/16 ══veth══▶ eth0 U=10.88.a.b ─DNAT─▶ lo F=10.87.0.2
//   ◀─────────── host address      ◀─masquerade─ (10.88.0.0/16)                  U ◀─SNAT─ F
//
// Every instance sees the same address F wherever it runs, so what a restored socket was bound to is there. Its
// bridge address U is the host's affair. An application may listen on 0.0.0.0, on F or on [::]; it has IPv4 outwards
// and IPv6 on its loopback only.
//
// Published ports are reached at every address of the host except 127.0.0.1 (that would need route_localnet, which
// opens the host's loopback to its neighbours). A host firewall that drops forwarded packets must let yado0 through.
//
// All state is the kernel's: an agent that starts again opens the same network, and what runs goes on. Methods may be
// called from any thread; two at once for the same address or port must not be.

#include <cstdint>
#include <map>

#include "net/address.hpp"
#include "os/netns.hpp"

namespace yado::net {

inline constexpr Ipv4Prefix instance_network{Ipv4::of(10, 88, 0, 0), 16};
inline constexpr Ipv4 bridge_address = Ipv4::of(10, 88, 0, 1);
/// F: what every instance takes for its own address.
inline constexpr Ipv4 instance_address = Ipv4::of(10, 87, 0, 2);

struct Target {
  Ipv4 address;  ///< U
  std::uint16_t port = 0;
  bool operator==(const Target&) const = default;
};

class HostNetwork {
 public:
  /// Makes the bridge, the rules and ip_forward=1 in the calling thread's network namespace, or finds them there.
  static Result<HostNetwork> open();

  /// A namespace wired to the bridge as `address` (U), which must be in 10.88.0.0/16 and no other live instance's.
  /// The caller owns it: when the handle and the processes in it are gone, so is all of it.
  Result<os::Netns> make_instance(Ipv4 address);
  /// Takes the instance's link down at once, where destroying the namespace does it some milliseconds later.
  /// No error when it is gone already.
  Status disconnect(Ipv4 address);

  /// TCP to `port` of this host goes to `target`. Errc::already_exists when the port goes elsewhere.
  Status publish(std::uint16_t port, Target target);
  /// New connections are refused from now on; established ones go on. No error when it is not published.
  Status unpublish(std::uint16_t port);
  Result<std::map<std::uint16_t, Target>> published();

 private:
  explicit HostNetwork(os::Netns host) : host_(std::move(host)) {}
  Status set_up();

  os::Netns host_;
};

}  // namespace yado::net
