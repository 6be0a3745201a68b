#include "net/rtnl.hpp"

#include <linux/if_addr.h>
#include <linux/if_ether.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/link/bridge.h>
#include <netlink/route/link/veth.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/tbf.h>
#include <netlink/route/route.h>
#include <netlink/socket.h>

#include <algorithm>
#include <memory>

namespace yado::net {
namespace {

template <auto release>
struct Release {
  template <class T>
  void operator()(T* object) const {
    release(object);
  }
};
template <class T, auto release>
using Owned = std::unique_ptr<T, Release<release>>;
using Link = Owned<rtnl_link, rtnl_link_put>;
using Veth = Owned<rtnl_link, rtnl_link_veth_release>;
using Address = Owned<nl_addr, nl_addr_put>;

Status check(int code, const std::string& doing) {
  if (code >= 0) return {};
  Errc errc = Errc::io;
  switch (-code) {
    case NLE_EXIST:
      errc = Errc::already_exists;
      break;
    case NLE_OBJ_NOTFOUND:
    case NLE_NODEV:
      errc = Errc::not_found;
      break;
    case NLE_PERM:
    case NLE_NOACCESS:
      errc = Errc::permission;
      break;
    case NLE_INVAL:
    case NLE_RANGE:
      errc = Errc::invalid_argument;
      break;
    case NLE_OPNOTSUPP:
    case NLE_PROTO_MISMATCH:
      errc = Errc::unsupported;
      break;
    default:
      break;
  }
  return fail(errc, "{}: {}", doing, nl_geterror(code));
}

Address address_of(Ipv4Prefix prefix) {
  const std::uint32_t bytes = prefix.address.network_order();
  Address address(nl_addr_build(AF_INET, &bytes, sizeof bytes));
  nl_addr_set_prefixlen(address.get(), prefix.length);
  return address;
}

Address address_of(const Mac& mac) { return Address(nl_addr_build(AF_LLC, mac.bytes.data(), mac.bytes.size())); }

Status name_link(rtnl_link* link, const VethEnd& end) {
  if (end.name.empty() || end.name.size() >= IFNAMSIZ)
    return fail(Errc::invalid_argument, "link name \"{}\" must have 1 to {} characters", end.name, IFNAMSIZ - 1);
  rtnl_link_set_name(link, end.name.c_str());
  if (end.mac) rtnl_link_set_addr(link, address_of(*end.mac).get());
  return {};
}

/// `change` is given an empty link that says only what is to change.
template <class Change>
Status change_link(nl_sock* socket, int index, const std::string& doing, Change change) {
  Link original(rtnl_link_alloc());
  Link changed(rtnl_link_alloc());
  rtnl_link_set_ifindex(original.get(), index);
  change(changed.get());
  return check(rtnl_link_change(socket, original.get(), changed.get(), 0), doing);
}

}  // namespace

Result<Rtnl> Rtnl::open() {
  Rtnl rtnl(nl_socket_alloc());
  YADO_TRY(check(nl_connect(rtnl.socket_, NETLINK_ROUTE), "open a rtnetlink socket"), "network");
  return rtnl;
}

Result<Rtnl> Rtnl::open(const os::Netns& netns) {
  return os::run_in(netns, [] { return open(); });
}

Rtnl& Rtnl::operator=(Rtnl&& other) noexcept {
  std::swap(socket_, other.socket_);
  return *this;
}

Rtnl::~Rtnl() {
  if (socket_ != nullptr) nl_socket_free(socket_);
}

Status Rtnl::add_bridge(const LinkName& name, Mac mac) {
  Link link(rtnl_link_alloc());
  rtnl_link_set_type(link.get(), "bridge");
  YADO_TRY(name_link(link.get(), {name, mac}), "add bridge");
  return check(rtnl_link_add(socket_, link.get(), NLM_F_CREATE | NLM_F_EXCL), fmt::format("add bridge {}", name));
}

Status Rtnl::add_veth(const VethEnd& here, const VethEnd& there, const os::Netns& other) {
  Link link(rtnl_link_veth_alloc());
  Link peer(rtnl_link_veth_get_peer(link.get()));
  YADO_TRY(name_link(link.get(), here), "add veth");
  YADO_TRY(name_link(peer.get(), there), "add veth");
  rtnl_link_set_ns_fd(peer.get(), other.fd().get());
  return check(rtnl_link_add(socket_, link.get(), NLM_F_CREATE | NLM_F_EXCL),
               fmt::format("add veth {} <-> {}", here.name, there.name));
}

Status Rtnl::delete_link(const LinkName& name) {
  Link link(rtnl_link_alloc());
  rtnl_link_set_name(link.get(), name.c_str());
  return check(rtnl_link_delete(socket_, link.get()), fmt::format("delete link {}", name));
}

Result<int> Rtnl::index_of(const LinkName& name) {
  rtnl_link* found = nullptr;
  YADO_TRY(check(rtnl_link_get_kernel(socket_, 0, name.c_str(), &found), "look it up"), fmt::format("link {}", name));
  return rtnl_link_get_ifindex(Link(found).get());
}

Status Rtnl::set_up(const LinkName& name, bool up) {
  YADO_ASSIGN(const int index, index_of(name), "set up");
  return change_link(socket_, index, fmt::format("set link {} {}", name, up ? "up" : "down"), [&](rtnl_link* link) {
    if (up)
      rtnl_link_set_flags(link, IFF_UP);
    else
      rtnl_link_unset_flags(link, IFF_UP);
  });
}

Status Rtnl::set_master(const LinkName& port, const LinkName& bridge) {
  YADO_ASSIGN(const int master, index_of(bridge), "add a bridge port");
  YADO_ASSIGN(const int index, index_of(port), "add a bridge port");
  return change_link(socket_, index, fmt::format("put {} into bridge {}", port, bridge),
                     [&](rtnl_link* link) { rtnl_link_set_master(link, master); });
}

Status Rtnl::set_hairpin(const LinkName& port) {
  const std::string doing = fmt::format("hairpin mode of {}", port);
  YADO_ASSIGN(const int index, index_of(port), doing);
  Link original(rtnl_link_alloc());
  Link changed(rtnl_link_alloc());
  rtnl_link_set_ifindex(original.get(), index);
  for (rtnl_link* link : {original.get(), changed.get()}) rtnl_link_set_family(link, AF_BRIDGE);
  YADO_TRY(check(rtnl_link_bridge_set_flags(changed.get(), RTNL_BRIDGE_HAIRPIN_MODE), "set flag"), doing);
  return check(rtnl_link_change(socket_, original.get(), changed.get(), 0), doing);
}

Status Rtnl::add_address(const LinkName& link, Ipv4Prefix prefix, bool own_route) {
  YADO_ASSIGN(const int index, index_of(link), fmt::format("add address {}", prefix.str()));
  Owned<rtnl_addr, rtnl_addr_put> address(rtnl_addr_alloc());
  rtnl_addr_set_ifindex(address.get(), index);
  rtnl_addr_set_local(address.get(), address_of(prefix).get());
  if (own_route) rtnl_addr_set_flags(address.get(), IFA_F_NOPREFIXROUTE);
  auto added = check(rtnl_addr_add(socket_, address.get(), 0), fmt::format("add address {} to {}", prefix.str(), link));
  if (!added && added.error().code == Errc::already_exists) return {};
  return added;
}

Status Rtnl::delete_address(const LinkName& link, Ipv4Prefix prefix) {
  YADO_ASSIGN(const int index, index_of(link), fmt::format("delete address {}", prefix.str()));
  Owned<rtnl_addr, rtnl_addr_put> address(rtnl_addr_alloc());
  rtnl_addr_set_ifindex(address.get(), index);
  rtnl_addr_set_local(address.get(), address_of(prefix).get());
  const int result = rtnl_addr_delete(socket_, address.get(), 0);
  if (result == -NLE_NOADDR) return {};
  return check(result, fmt::format("delete address {} of {}", prefix.str(), link));
}

Status Rtnl::add_route(const LinkName& link, Ipv4Prefix destination, std::optional<Ipv4> gateway,
                       std::optional<Ipv4> preferred_source) {
  const std::string doing = fmt::format("add route to {} by {}", destination.str(), link);
  YADO_ASSIGN(const int index, index_of(link), doing);
  Owned<rtnl_route, rtnl_route_put> route(rtnl_route_alloc());
  rtnl_route_set_family(route.get(), AF_INET);
  rtnl_route_set_dst(route.get(), address_of(destination).get());
  rtnl_route_set_protocol(route.get(), RTPROT_STATIC);
  rtnl_route_set_scope(route.get(), gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK);
  if (preferred_source) rtnl_route_set_pref_src(route.get(), address_of({*preferred_source, 32}).get());
  rtnl_nexthop* hop = rtnl_route_nh_alloc();
  rtnl_route_nh_set_ifindex(hop, index);
  if (gateway) rtnl_route_nh_set_gateway(hop, address_of({*gateway, 32}).get());
  rtnl_route_add_nexthop(route.get(), hop);  // the route owns it now
  return check(rtnl_route_add(socket_, route.get(), NLM_F_CREATE | NLM_F_REPLACE), doing);
}

Status Rtnl::add_neighbour(const LinkName& link, Ipv4 address, Mac mac) {
  const std::string doing = fmt::format("add neighbour {} to {}", address.str(), link);
  YADO_ASSIGN(const int index, index_of(link), doing);
  Owned<rtnl_neigh, rtnl_neigh_put> neighbour(rtnl_neigh_alloc());
  rtnl_neigh_set_ifindex(neighbour.get(), index);
  rtnl_neigh_set_dst(neighbour.get(), address_of({address, 32}).get());
  rtnl_neigh_set_lladdr(neighbour.get(), address_of(mac).get());
  rtnl_neigh_set_state(neighbour.get(), NUD_PERMANENT);
  return check(rtnl_neigh_add(socket_, neighbour.get(), NLM_F_CREATE | NLM_F_REPLACE), doing);
}

Status Rtnl::set_rate(const LinkName& link, std::uint64_t bits_per_second) {
  const std::string doing = fmt::format("shape {} to {} bit/s", link, bits_per_second);
  constexpr std::uint64_t most = std::uint64_t{8} * 1'000'000'000;  // libnl's rate is an int, in bytes per second
  if (bits_per_second < 8'000 || bits_per_second > most)
    return fail(Errc::invalid_argument, "{}: must be between 8 kbit/s and 8 Gbit/s", doing);
  YADO_ASSIGN(const int index, index_of(link), doing);
  const int bytes_per_second = static_cast<int>(bits_per_second / 8);
  // Large enough for what one timer tick of the kernel (1/100 s at worst) lets through, and for one frame.
  const int burst_bytes = std::max(bytes_per_second / 100, 16'384);
  Owned<rtnl_qdisc, rtnl_qdisc_put> qdisc(rtnl_qdisc_alloc());
  rtnl_tc_set_ifindex(TC_CAST(qdisc.get()), index);
  rtnl_tc_set_parent(TC_CAST(qdisc.get()), TC_H_ROOT);
  rtnl_tc_set_handle(TC_CAST(qdisc.get()), TC_HANDLE(1, 0));
  YADO_TRY(check(rtnl_tc_set_kind(TC_CAST(qdisc.get()), "tbf"), "choose tbf"), doing);
  rtnl_qdisc_tbf_set_rate(qdisc.get(), bytes_per_second, burst_bytes, 0);
  rtnl_qdisc_tbf_set_limit_by_latency(qdisc.get(), 50'000);
  return check(rtnl_qdisc_add(socket_, qdisc.get(), NLM_F_CREATE | NLM_F_REPLACE), doing);
}

}  // namespace yado::net
