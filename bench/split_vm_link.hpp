#pragma once
// What a shaped link really carries.

#include "base/error.hpp"
#include "net/address.hpp"
#include "os/netns.hpp"

namespace yado::bench {

/// Payload bytes per second of one TCP connection between two machines, by a quarter of a second's worth at `bits_per_second`.
Result<double> link_rate(const os::Netns& from, const os::Netns& to, net::Ipv4 address_of_to, std::uint64_t bits_per_second);

}  // namespace yado::bench
