#include "image/page.hpp"

#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "image/sealed.hpp"

namespace yado::image {

PageSet normalised(std::vector<PageRange> ranges) {
  std::erase_if(ranges, [](const PageRange& range) { return range.count == 0; });
  std::ranges::sort(ranges, {}, &PageRange::begin);
  PageSet set;
  for (const PageRange& range : ranges) {
    if (set.empty() || range.begin() > set.back().end())
      set.push_back(range);
    else
      set.back().count = std::max(set.back().end(), range.end()) - set.back().begin();
  }
  return set;
}

bool well_formed(const PageSet& set, std::uint64_t guest_pages) {
  std::uint64_t free_from = 0;  // the lowest page at which the next range may begin
  for (const PageRange& range : set) {
    if (range.count == 0 || range.begin() < free_from || range.begin() >= guest_pages) return false;
    if (range.count > guest_pages - range.begin()) return false;
    free_from = range.end() + 1;
  }
  return true;
}

bool contains(const PageSet& set, PageNumber page) {
  const auto after = std::ranges::upper_bound(set, value_of(page), {}, &PageRange::begin);
  return after != set.begin() && value_of(page) < std::prev(after)->end();
}

std::uint64_t count_of(const PageSet& set) {
  std::uint64_t count = 0;
  for (const PageRange& range : set) count += range.count;
  return count;
}

CutId CutId::of(std::string_view text) { return CutId{seal_of(text)}; }

std::string CutId::hex() const {
  std::string text;
  for (const std::uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

CutId CutId::from_hex(std::string_view text) {
  CutId cut;
  if (text.size() != 2 * cut.bytes.size()) return {};
  for (std::size_t i = 0; i < cut.bytes.size(); ++i) {
    const char* const from = text.data() + 2 * i;
    if (std::from_chars(from, from + 2, cut.bytes[i], 16).ptr != from + 2) return {};
  }
  return cut;
}

std::uint64_t checksum_of(PageContents page) { return XXH3_64bits(page.data(), page.size()); }

std::uint64_t checksum_of_zeros() {
  static const std::uint64_t checksum = [] {
    const std::array<std::byte, page_bytes> zeros{};
    return checksum_of(PageContents(zeros));
  }();
  return checksum;
}

bool is_zero(PageContents page) {
  // Equal to itself moved by one byte and beginning with zero: memcmp does it at the speed of memory.
  return page[0] == std::byte{} && std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
}

}  // namespace yado::image
