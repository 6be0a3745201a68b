#pragma once
// Settings below /proc/sys/net, which belong to a network namespace each.

#include <string>
#include <string_view>

#include "os/netns.hpp"

namespace yado::net {

struct Sysctl {
  std::string_view path;  ///< below /proc/sys, for example "net/ipv4/ip_forward"
  std::string_view value;
  bool optional = false;  ///< no error when this kernel does not know it (IPv6 switched off)
};

/// Writes them in order in `netns`; needs /proc to be mounted where the caller is.
Status set_sysctls(const os::Netns& netns, std::initializer_list<Sysctl> settings);

}  // namespace yado::net
