#include "net/host_network.hpp"

#include <cstdio>

#include "net/nftables.hpp"
#include "net/rtnl.hpp"
#include "net/sysctl.hpp"

namespace yado::net {
namespace {

constexpr const char* bridge = "yado0";

/// Chains are emptied and filled again in one transaction; the map keeps what is published. The last rule is for an
/// instance that calls another one, or itself, by a published port: without it the answer would take the short way
/// over the bridge, past the translation.
constexpr const char* host_rules = R"(
add table ip yado
add map ip yado published { type inet_service : ipv4_addr . inet_service ; }
add chain ip yado prerouting { type nat hook prerouting priority dstnat ; }
add chain ip yado output { type nat hook output priority -100 ; }
add chain ip yado postrouting { type nat hook postrouting priority srcnat ; }
flush chain ip yado prerouting
flush chain ip yado output
flush chain ip yado postrouting
add rule ip yado prerouting fib daddr type local dnat ip to tcp dport map @published
add rule ip yado output ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map @published
add rule ip yado postrouting ip saddr 10.88.0.0/16 oifname != "yado0" masquerade
add rule ip yado postrouting ip saddr 10.88.0.0/16 oifname "yado0" ct status dnat masquerade
)";

/// {0} is U, {1} is F. The output chain is for an application that connects to its own bridge address.
constexpr const char* instance_rules = R"(
add table ip yado
add chain ip yado prerouting {{ type nat hook prerouting priority dstnat ; }}
add chain ip yado output {{ type nat hook output priority -100 ; }}
add chain ip yado postrouting {{ type nat hook postrouting priority srcnat ; }}
add rule ip yado prerouting ip daddr {0} dnat to {1}
add rule ip yado output ip daddr {0} dnat to {1}
add rule ip yado postrouting ip saddr {1} oifname "eth0" snat to {0}
)";

/// The host's end of an instance's link: "yv" and the last two numbers of its address, unique on the host.
LinkName link_of(Ipv4 address) { return fmt::format("yv{:04x}", address.value & 0xffff); }

Status check_instance(Ipv4 address) {
  const std::uint32_t last = address.value & 0xffff;
  if (!instance_network.contains(address) || address == bridge_address || last == 0 || last == 0xffff)
    return fail(Errc::invalid_argument, "{} is no instance address: choose one in {} other than {}", address.str(),
                instance_network.str(), bridge_address.str());
  return {};
}

Status ignore(Status status, Errc expected) {
  if (!status && status.error().code == expected) return {};
  return status;
}

Status wire_inside(const os::Netns& netns, Ipv4 address) {
  YADO_ASSIGN(auto inside, Rtnl::open(netns), "instance network");
  YADO_TRY(inside.set_up("lo"), "instance network");
  YADO_TRY(inside.add_address("lo", {instance_address, 32}), "instance network");
  YADO_TRY(inside.set_up("eth0"), "instance network");
  YADO_TRY(inside.add_address("eth0", {address, instance_network.length}, true), "instance network");
  YADO_TRY(inside.add_route("eth0", instance_network, std::nullopt, instance_address), "instance network");
  return inside.add_route("eth0", {Ipv4{}, 0}, bridge_address, instance_address);
}

}  // namespace

Result<HostNetwork> HostNetwork::open() {
  YADO_ASSIGN(auto netns, os::Netns::current(), "host network");
  HostNetwork network(std::move(netns));
  YADO_TRY(network.set_up(), "host network");
  return network;
}

Status HostNetwork::set_up() {
  YADO_ASSIGN(auto rtnl, Rtnl::open(host_), "bridge");
  // A fixed MAC: by default a bridge takes its lowest port's, and instances would lose it whenever one leaves.
  YADO_TRY(ignore(rtnl.add_bridge(bridge, Mac::of(bridge_address)), Errc::already_exists), "bridge");
  YADO_TRY(rtnl.add_address(bridge, {bridge_address, instance_network.length}), "bridge");
  YADO_TRY(rtnl.set_up(bridge), "bridge");
  YADO_TRY(set_sysctls(host_, {{"net/ipv4/ip_forward", "1"}}), "forwarding");
  YADO_TRY(nft(host_, host_rules), "translation rules");
  return {};
}

Result<os::Netns> HostNetwork::make_instance(Ipv4 address) {
  YADO_TRY(check_instance(address), "instance network");
  YADO_ASSIGN(auto netns, os::Netns::create(), "instance network");
  YADO_TRY(set_sysctls(netns, {{"net/ipv4/ip_unprivileged_port_start", "0"},
                               // F is on lo: never answer for it, nor ask in its name, on the bridge.
                               {"net/ipv4/conf/all/arp_ignore", "1"},
                               {"net/ipv4/conf/all/arp_announce", "2"},
                               {"net/ipv6/conf/default/disable_ipv6", "1", true}}),
           "instance network");
  const LinkName link = link_of(address);
  YADO_ASSIGN(auto rtnl, Rtnl::open(host_), "instance network");
  // A former owner of the address may still be on its way out.
  YADO_TRY(ignore(rtnl.delete_link(link), Errc::not_found), "instance network");
  YADO_TRY(rtnl.add_veth({link, std::nullopt}, {"eth0", Mac::of(address)}, netns), "instance network");
  YADO_TRY(rtnl.set_master(link, bridge), "instance network");
  // Where the kernel filters bridged frames too (br_netfilter), it translates them inside the bridge.
  YADO_TRY(rtnl.set_hairpin(link), "instance network");
  YADO_TRY(rtnl.set_up(link), "instance network");
  YADO_TRY(wire_inside(netns, address), "instance network");
  YADO_TRY(nft(netns, fmt::format(instance_rules, address.str(), instance_address.str())), "instance network");
  return netns;
}

Status HostNetwork::disconnect(Ipv4 address) {
  YADO_TRY(check_instance(address), "disconnect");
  YADO_ASSIGN(auto rtnl, Rtnl::open(host_), "disconnect");
  return ignore(rtnl.delete_link(link_of(address)), Errc::not_found);
}

Status HostNetwork::publish(std::uint16_t port, Target target) {
  const std::string doing = fmt::format("publish port {}", port);
  YADO_TRY(check_instance(target.address), doing);
  if (port == 0 || target.port == 0) return fail(Errc::invalid_argument, "{}: port 0 cannot be published", doing);
  YADO_TRY(nft(host_, fmt::format("add element ip yado published {{ {} : {} . {} }}", port, target.address.str(),
                                  target.port)),
           doing);
  return {};
}

Status HostNetwork::unpublish(std::uint16_t port) {
  auto removed = nft(host_, fmt::format("delete element ip yado published {{ {} }}", port));
  if (!removed && removed.error().code != Errc::not_found)
    return context(removed.error(), fmt::format("unpublish port {}", port));
  return {};
}

Result<std::map<std::uint16_t, Target>> HostNetwork::published() {
  YADO_ASSIGN(const std::string listing, nft(host_, "list map ip yado published"), "published ports");
  // elements = { 20001 : 10.88.0.2 . 8000, … }; nothing else in the listing has this shape.
  std::map<std::uint16_t, Target> ports;
  const auto start = listing.find("elements = {");
  std::string_view rest = start == std::string::npos ? "" : std::string_view(listing).substr(start + 12);
  while (!rest.empty()) {
    unsigned port = 0, a = 0, b = 0, c = 0, d = 0, inner = 0;
    const std::string element(rest.substr(0, rest.find_first_of(",}")));
    if (std::sscanf(element.c_str(), " %u : %u.%u.%u.%u . %u", &port, &a, &b, &c, &d, &inner) != 6)
      return fail(Errc::internal, "nftables lists a published port as \"{}\"", element);
    ports[static_cast<std::uint16_t>(port)] = {Ipv4{a << 24 | b << 16 | c << 8 | d}, static_cast<std::uint16_t>(inner)};
    rest.remove_prefix(element.size() + 1);
    if (listing[static_cast<std::size_t>(rest.data() - listing.data()) - 1] == '}') break;
  }
  return ports;
}

}  // namespace yado::net
