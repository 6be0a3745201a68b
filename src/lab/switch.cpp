#include "lab/switch.hpp"

#include "net/nftables.hpp"
#include "net/rtnl.hpp"
#include "net/sysctl.hpp"

namespace yado::lab {
namespace {

constexpr const char* rules = R"(
add table bridge lab
add set bridge lab to { type ifname ; }
add set bridge lab from { type ifname ; }
add chain bridge lab forward { type filter hook forward priority 0 ; }
add rule bridge lab forward oifname @to drop
add rule bridge lab forward iifname @from drop
)";
// Apart: who never asks for it needs no nft_numgen.
constexpr const char* lossy_rules = R"(
add set bridge lab lossy { type ifname ; }
add rule bridge lab forward oifname @lossy numgen random mod 10 == 0 drop
add rule bridge lab forward iifname @lossy numgen random mod 10 == 0 drop
)";

std::string refill(const char* set, const std::set<std::string>& names) {
  std::string text = fmt::format("flush set bridge lab {}\n", set);
  for (const std::string& name : names) text += fmt::format("add element bridge lab {} {{ \"{}\" }}\n", set, name);
  return text;
}

}  // namespace

Result<Switch> Switch::create(std::map<std::string, net::Ipv4> machines, std::uint64_t link_bits_per_second) {
  YADO_ASSIGN(auto netns, os::Netns::create(), "switch");
  YADO_TRY(net::set_sysctls(netns, {{"net/ipv6/conf/default/disable_ipv6", "1", true}}), "switch");
  YADO_ASSIGN(auto rtnl, net::Rtnl::open(netns), "switch");
  YADO_TRY(rtnl.add_bridge("switch", net::Mac::of(net::Ipv4::of(10, 77, 0, 1))), "switch");
  YADO_TRY(rtnl.set_up("switch"), "switch");
  YADO_TRY(net::nft(netns, rules), "switch");
  return Switch(std::move(netns), std::move(machines), link_bits_per_second);
}

Result<os::Netns> Switch::plug_in(const std::string& machine) {
  const std::string doing = fmt::format("plug in {}", machine);
  const net::Ipv4 address = machines_.at(machine);
  unplug(machine);
  YADO_TRY(drop(machine, {}), doing);
  YADO_ASSIGN(auto netns, os::Netns::create(), doing);
  YADO_TRY(net::set_sysctls(netns, {{"net/ipv6/conf/default/disable_ipv6", "1", true}}), doing);
  YADO_ASSIGN(auto here, net::Rtnl::open(netns_), doing);
  YADO_TRY(here.add_veth({machine, std::nullopt}, {"eth0", net::Mac::of(address)}, netns), doing);
  YADO_TRY(here.set_master(machine, "switch"), doing);
  YADO_TRY(here.set_up(machine), doing);
  YADO_ASSIGN(auto inside, net::Rtnl::open(netns), doing);
  YADO_TRY(inside.set_up("lo"), doing);
  YADO_TRY(inside.set_up("eth0"), doing);
  YADO_TRY(inside.add_address("eth0", {address, 24}), doing);
  for (const auto& [name, other] : machines_)
    if (name != machine) YADO_TRY(inside.add_neighbour("eth0", other, net::Mac::of(other)), doing);
  if (link_bits_per_second_ != 0) {
    YADO_TRY(here.set_rate(machine, link_bits_per_second_), doing);
    YADO_TRY(inside.set_rate("eth0", link_bits_per_second_), doing);
  }
  return netns;
}

void Switch::unplug(const std::string& machine) {
  if (auto rtnl = net::Rtnl::open(netns_)) (void)rtnl->delete_link(machine);
}

Status Switch::drop(const std::string& machine, Drop drop) {
  const auto put = [&](std::set<std::string>& names, bool wanted) {
    wanted ? (void)names.insert(machine) : (void)names.erase(machine);
  };
  const auto to = to_, from = from_, lossy = lossy_;
  put(to_, drop.to);
  put(from_, drop.from);
  put(lossy_, drop.some);
  if (to_ == to && from_ == from && lossy_ == lossy) return {};
  const std::string doing = fmt::format("drop packets of {}", machine);
  if (drop.some && !can_lose_) {
    YADO_TRY(net::nft(netns_, lossy_rules), doing);
    can_lose_ = true;
  }
  YADO_TRY(net::nft(netns_, refill("to", to_) + refill("from", from_) + (can_lose_ ? refill("lossy", lossy_) : "")), doing);
  return {};
}

}  // namespace yado::lab
