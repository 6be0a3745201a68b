#include "workload/vm/dhcp.hpp"

#include <unistd.h>

#include "net/guest_network.hpp"
#include "net/host_network.hpp"
#include "os/file.hpp"
#include "os/process.hpp"

namespace yado::vm {

std::filesystem::path name_servers_of_host() {
  const char* const behind_resolved = "/run/systemd/resolve/resolv.conf";
  return ::access(behind_resolved, R_OK) == 0 ? behind_resolved : "/etc/resolv.conf";
}

std::vector<std::string> arguments_of(const DhcpServer& server) {
  const std::string address = net::instance_address.str();
  return {server.program.native(),
          "--conf-file=/dev/null",  // not the host's own configuration
          "--pid-file",             // none
          "--leasefile-ro",         // none
          "--interface=" + server.bridge,
          "--except-interface=lo",
          "--bind-interfaces",
          fmt::format("--dhcp-range={},static", address),
          fmt::format("--dhcp-host={},{},infinite", server.guest.str(), address),
          "--dhcp-ignore-clid",    // boot loader, initramfs and system name themselves differently
          "--dhcp-authoritative",  // what the guest had elsewhere is refused at once, and what it got here confirmed by whoever is asked
          "--dhcp-broadcast",      // else the kernel's permanent entry for the guest's MAC (guest_network.cpp) becomes one that is asked for
          "--no-ping",
          "--no-hosts",
          "--quiet-dhcp",
          "--resolv-file=" + server.name_servers.native()};
}

Status start_dhcp_server(const DhcpServer& server, const os::Netns& network, const os::Cgroup& cgroup, nanoseconds limit) {
  YADO_ASSIGN(os::Pipe words, os::make_pipe(), "DHCP");
  os::Spawn spawn{.arguments = arguments_of(server)};
  spawn.standard_error = words.write.get();
  spawn.in_child = [&]() -> Status {
    YADO_TRY(network.enter(), "DHCP");
    return cgroup.add(::getpid());
  };
  // It goes into the background when it listens, and has let go of its standard error by then.
  auto process = os::spawn(spawn);
  words.write.reset();
  if (!process && process.error().code == Errc::not_found)
    return fail(Errc::not_found, "the guest asks for its address by DHCP, for which there must be {} on this host: install dnsmasq-base "
                "(a guest with yado.address= on its kernel's command line does not ask)", server.program.native());
  if (!process) return context(process.error(), "DHCP");
  YADO_ASSIGN(const std::string said, os::read_to_end(words.read, limit), "dnsmasq");
  YADO_ASSIGN(const auto ended, process->wait(limit), "dnsmasq");
  if (!ended) return fail(Errc::timed_out, "dnsmasq is not ready after {:.0f} ms", to_ms(limit));
  if (!ended->success()) return fail(Errc::application, "dnsmasq, which is to answer the guest's DHCP, has ended with {}: {}", ended->text(), said);
  return {};
}

}  // namespace yado::vm
