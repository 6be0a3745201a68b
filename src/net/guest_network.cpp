#include "net/guest_network.hpp"

#include "net/host_network.hpp"
#include "net/rtnl.hpp"
#include "net/sysctl.hpp"

namespace yado::net {

Mac guest_mac() { return Mac::of(instance_address); }

Status give_address_to_guest(const os::Netns& instance) {
  YADO_ASSIGN(auto rtnl, Rtnl::open(instance), "guest network");
  YADO_TRY(rtnl.delete_address("lo", {instance_address, 32}), "guest network");
  // The kernel took the routes away that named it as their source.
  YADO_TRY(rtnl.add_route("eth0", instance_network, std::nullopt, std::nullopt), "guest network");
  YADO_TRY(rtnl.add_route("eth0", {Ipv4{}, 0}, bridge_address, std::nullopt), "guest network");
  if (auto made = rtnl.add_bridge(guest_bridge, Mac::of(guest_gateway)); !made && made.error().code != Errc::already_exists)
    return context(made.error(), "guest network");
  YADO_TRY(rtnl.add_address(guest_bridge, {guest_gateway, 24}), "guest network");
  YADO_TRY(rtnl.set_up(guest_bridge), "guest network");
  // Not asked for by ARP, which the kernel gives up after 3 s ("No route to host"): a guest that has just been restored may need longer.
  YADO_TRY(rtnl.add_neighbour(guest_bridge, instance_address, guest_mac()), "guest network");
  return set_sysctls(instance, {{"net/ipv4/ip_forward", "1"}});
}

}  // namespace yado::net
