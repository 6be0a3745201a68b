#pragma once
// An instance's network (host_network.hpp) when the instance is a virtual machine: F is the guest's, behind a bridge.
//
//   instance's network namespace                                              guest
//   eth0 U=10.88.a.b ─DNAT─▶ guest0 10.87.0.1/24 ══tap══▶ network card F=10.87.0.2/24, default route by 10.87.0.1
//         U ◀─SNAT─ F
//
// Every guest sees the same addresses and has the same MAC, wherever it runs: nobody asks for it, and what is sent to a guest that cannot
// answer yet waits for it. A guest is told on its kernel's command line, or asks by DHCP (workload/vm/dhcp.hpp).

#include "net/address.hpp"
#include "os/netns.hpp"

namespace yado::net {

inline constexpr Ipv4 guest_gateway = Ipv4::of(10, 87, 0, 1);
/// Where the guest's tap is to be a port.
inline constexpr const char* guest_bridge = "guest0";

/// Of the guest's network card.
Mac guest_mac();

/// In a namespace that HostNetwork::make_instance made; doing it again changes nothing.
Status give_address_to_guest(const os::Netns& instance);

}  // namespace yado::net
