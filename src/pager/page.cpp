#include "pager/page.hpp"

#include <xxhash.h>

#include <cstring>

namespace yado::pager {

std::vector<PageRun> runs_of(std::span<const PageNumber> pages) {
  std::vector<PageRun> runs;
  for (const PageNumber page : pages)
    if (!runs.empty() && runs.back().first + runs.back().pages == page)
      ++runs.back().pages;
    else
      runs.push_back({page, 1});
  return runs;
}

// memcmp of a page with itself one word further: its first word is zero and every word is like the one before.
bool is_zero(PageData page) {
  std::uint64_t first = 0;
  std::memcpy(&first, page.data(), sizeof first);
  return first == 0 && std::memcmp(page.data(), page.data() + sizeof first, page_bytes - sizeof first) == 0;
}

std::uint64_t sum_of(PageData page, std::uint64_t seed) {
  return XXH3_64bits_withSeed(page.data(), page.size(), seed);
}

}  // namespace yado::pager
