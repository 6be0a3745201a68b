#pragma once
// Packet filter rules, as text in nft's own language (nft(8)), through libnftables.

#include <string>

#include "os/netns.hpp"

namespace yado::net {

/// Carries out `commands` in the network namespace, all or none of them, and returns what they print.
/// Errc::not_found and already_exists as the kernel says it; otherwise io, with nft's own words.
Result<std::string> nft(const os::Netns& netns, const std::string& commands);

}  // namespace yado::net
