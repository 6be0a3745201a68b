#pragma once
// Only for Copies: neighbours go to the same servers, so that a window is one request; regions are spread.

#include "pager/page.hpp"

namespace yado::pager {

constexpr PageNumber region_pages = 512;

constexpr std::uint16_t bit(std::size_t server) { return static_cast<std::uint16_t>(1U << server); }

}  // namespace yado::pager
