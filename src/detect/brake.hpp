#pragma once
// When most hosts seem dead at once, the observer's own link is the likelier cause: suspect yourself.

#include <cstddef>

namespace yado::detect {

/// True when relocations must wait. With one or two hosts nothing can be told apart, and the brake stays off.
constexpr bool brake(std::size_t silent_hosts, std::size_t all_hosts) {
  return all_hosts >= 3 && 2 * silent_hosts > all_hosts;
}

}  // namespace yado::detect
