#pragma once
// The address of a guest that asks for it (DHCP, RFC 2131), and its name server: dnsmasq, in the instance's network namespace.
//
//   guest ── DISCOVER, REQUEST ─▶ guest0 ── dnsmasq      always the same answer: the guest's address, the bridge as router and name server, no end
//         ── names (port 53) ───▶ guest0 ── dnsmasq ─▶ the name servers of the host where the guest is
//
// Nothing is kept: on another host, or restored from an image, a guest that asks again hears what it knows already. So names go by way of
// dnsmasq, too: a guest that has moved does not ask for its name servers again.

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "net/address.hpp"
#include "os/cgroup.hpp"
#include "os/netns.hpp"

namespace yado::vm {

struct DhcpServer {
  std::filesystem::path program;  ///< dnsmasq
  std::string bridge;             ///< with the gateway's address; up
  net::Mac guest;                 ///< who is answered; nobody else is
  std::filesystem::path name_servers;  ///< a resolv.conf(5)
};

/// This host's name servers, as they are reached from other network namespaces: not systemd-resolved's own address on the loopback.
std::filesystem::path name_servers_of_host();

std::vector<std::string> arguments_of(const DhcpServer& server);

/// Returns when it listens. It lives in `cgroup` and ends with that: it is nobody's child. Errors: `not_found` without dnsmasq, `application` with its words.
Status start_dhcp_server(const DhcpServer& server, const os::Netns& network, const os::Cgroup& cgroup, nanoseconds limit);

}  // namespace yado::vm
