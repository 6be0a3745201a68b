#pragma once
// IPv4 and MAC addresses as values.

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace yado::net {

struct Ipv4 {
  std::uint32_t value = 0;  ///< host byte order

  static constexpr Ipv4 of(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d) {
    return {std::uint32_t{a} << 24 | std::uint32_t{b} << 16 | std::uint32_t{c} << 8 | d};
  }
  /// Dotted decimal, all four numbers.
  static Result<Ipv4> parse(std::string_view text);

  std::string str() const;
  constexpr std::uint32_t network_order() const { return __builtin_bswap32(value); }
  constexpr auto operator<=>(const Ipv4&) const = default;
};

/// A network such as 10.88.0.0/16, or an address together with the length of its prefix.
struct Ipv4Prefix {
  Ipv4 address;
  int length = 32;

  std::string str() const;
  constexpr bool contains(Ipv4 other) const {
    const std::uint32_t mask = length == 0 ? 0 : ~std::uint32_t{0} << (32 - length);
    return (address.value & mask) == (other.value & mask);
  }
};

struct Mac {
  std::array<std::uint8_t, 6> bytes{};

  /// A locally administered address made of an IPv4 address: whoever has that address again, on whichever link,
  /// has the MAC that neighbours already know.
  static Mac of(Ipv4 address);
  std::string str() const;
};

}  // namespace yado::net

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
