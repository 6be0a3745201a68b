#pragma once
// Only for Parity.

#include <array>
#include <cstring>

#include "pager/page.hpp"

namespace yado::pager {

inline const std::array<std::byte, page_bytes>& zeros() {
  static const std::array<std::byte, page_bytes> page{};
  return page;
}

inline void xor_into(std::span<std::byte, page_bytes> page, const std::byte* other) {
  for (std::size_t at = 0; at < page_bytes; at += sizeof(std::uint64_t)) {
    std::uint64_t a = 0, b = 0;
    std::memcpy(&a, page.data() + at, sizeof a);
    std::memcpy(&b, other + at, sizeof b);
    a ^= b;
    std::memcpy(page.data() + at, &a, sizeof a);
  }
}

}  // namespace yado::pager
