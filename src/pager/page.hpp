#pragma once
// Pages as everything here names them: by number, from the beginning of the memory file.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace yado::pager {

constexpr std::size_t page_bytes = 4096;

using PageNumber = std::uint64_t;
using PageData = std::span<const std::byte, page_bytes>;

struct PageRun {
  PageNumber first = 0;
  std::uint32_t pages = 0;
  bool operator==(const PageRun&) const = default;
};

/// Ascending page numbers, put together.
std::vector<PageRun> runs_of(std::span<const PageNumber> pages);

bool is_zero(PageData page);

/// 64 bits of the content, keyed by `seed`: a guest that knows the function but not the seed cannot make two pages
/// that look alike.
std::uint64_t sum_of(PageData page, std::uint64_t seed);

}  // namespace yado::pager
