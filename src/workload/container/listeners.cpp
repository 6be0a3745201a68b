#include "workload/container/listeners.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <unistd.h>

#include "base/check.hpp"
#include "os/file.hpp"

namespace yado::container {
namespace {

constexpr const char* listening = "0A";  // TCP_LISTEN

/// /proc/net/tcp prints an address as 32-bit words of the machine's own byte order, in hex.
sockaddr_storage address_of(const std::string& hex, std::uint16_t port) {
  sockaddr_storage address{};
  std::uint32_t words[4]{};
  for (std::size_t i = 0; i < hex.size() / 8 && i < 4; ++i)
    words[i] = static_cast<std::uint32_t>(std::strtoul(hex.substr(i * 8, 8).c_str(), nullptr, 16));
  if (hex.size() == 8) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    v4.sin_addr.s_addr = words[0] != 0 ? words[0] : htonl(INADDR_LOOPBACK);
  } else {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    std::memcpy(&v6.sin6_addr, words, sizeof words);
    if (IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr)) v6.sin6_addr = in6addr_loopback;
  }
  return address;
}

}  // namespace

std::vector<sockaddr_storage> listeners(pid_t process, std::uint16_t port) {
  std::vector<sockaddr_storage> found;
  const std::string suffix = fmt::format(":{:04X}", port);
  for (const char* table : {"tcp", "tcp6"}) {
    const auto text = os::read_text(fmt::format("/proc/{}/net/{}", process, table));
    if (!text) continue;  // no IPv6
    std::istringstream lines(*text);
    std::string line, slot, local, remote, state;
    std::getline(lines, line);
    while (std::getline(lines, line)) {
      std::istringstream words(line);
      words >> slot >> local >> remote >> state;
      if (state == listening && local.ends_with(suffix))
        found.push_back(address_of(local.substr(0, local.size() - suffix.size()), port));
    }
  }
  return found;
}

Result<std::vector<Door>> doors(pid_t process, std::uint16_t port, std::size_t count, int network_namespace) {
  std::vector<Door> made;
  const std::vector<sockaddr_storage> addresses = listeners(process, port);
  if (addresses.empty()) return made;
  os::Fd home;
  if (network_namespace >= 0) {
    YADO_ASSIGN(home, os::open_path("/proc/thread-self/ns/net", O_RDONLY), "knock");
  }
  if (network_namespace >= 0 && ::setns(network_namespace, CLONE_NEWNET) != 0) return fail_errno("enter the network namespace");
  for (std::size_t i = 0; i < count; ++i) {
    const sockaddr_storage& address = addresses[i % addresses.size()];
    os::Fd socket(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (socket.valid()) made.push_back({std::move(socket), address});
  }
  if (network_namespace >= 0)
    YADO_CHECK(::setns(home.get(), CLONE_NEWNET) == 0, "back to the own network namespace: {}", std::strerror(errno));
  return made;
}

void knock(const Door& door) {
  (void)::connect(door.socket.get(), reinterpret_cast<const sockaddr*>(&door.address), sizeof door.address);
}

}  // namespace yado::container
