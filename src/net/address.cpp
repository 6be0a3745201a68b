#include "net/address.hpp"

#include <arpa/inet.h>

namespace yado::net {

Result<Ipv4> Ipv4::parse(std::string_view text) {
  in_addr parsed{};
  if (::inet_pton(AF_INET, std::string(text).c_str(), &parsed) != 1)
    return fail(Errc::invalid_argument, "\"{}\" is not an IPv4 address", text);
  return Ipv4{ntohl(parsed.s_addr)};
}

std::string Ipv4::str() const {
  return fmt::format("{}.{}.{}.{}", value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255);
}

std::string Ipv4Prefix::str() const { return fmt::format("{}/{}", address.str(), length); }

Mac Mac::of(Ipv4 address) {
  const auto byte = [&](int shift) { return static_cast<std::uint8_t>(address.value >> shift & 255); };
  return {{0x02, 0x79, byte(24), byte(16), byte(8), byte(0)}};
}

std::string Mac::str() const {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3], bytes[4],
                     bytes[5]);
}

}  // namespace yado::net
