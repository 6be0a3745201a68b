#pragma once
// Pages of a guest's memory and the names around them (docs/formats/pages.md, "Words").

#include <fmt/format.h>

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace yado::image {

inline constexpr std::size_t page_bytes = 4096;
inline constexpr std::uint64_t max_guest_pages = std::uint64_t{1} << 34;  ///< 64 TiB

/// Offset in the guest's memory / 4096.
enum class PageNumber : std::uint64_t {};
constexpr std::uint64_t value_of(PageNumber page) { return static_cast<std::uint64_t>(page); }

using PageContents = std::span<const std::byte, page_bytes>;
using PageBuffer = std::span<std::byte, page_bytes>;

/// Orders versions of one page: the higher counts, whoever comes first; of two in the same round the later.
enum class Round : std::uint32_t {};

/// `count` pages from `first` on.
struct PageRange {
  PageNumber first{};
  std::uint64_t count = 0;
  constexpr std::uint64_t begin() const { return value_of(first); }
  constexpr std::uint64_t end() const { return begin() + count; }
  bool operator==(const PageRange&) const = default;
};

/// Ascending ranges that are not empty and neither overlap nor touch: one way to write a set of pages.
using PageSet = std::vector<PageRange>;
inline PageSet all_pages(std::uint64_t guest_pages) { return {{PageNumber{0}, guest_pages}}; }
/// The same set in that form, from ranges in any order; they may overlap.
PageSet normalised(std::vector<PageRange> ranges);
/// True when it is in that form, and inside the guest.
bool well_formed(const PageSet& set, std::uint64_t guest_pages);
bool contains(const PageSet& set, PageNumber page);
std::uint64_t count_of(const PageSet& set);

/// The name of an instant: all parts of one image carry the same, and no other image does. All zero: none.
struct CutId {
  std::array<std::uint8_t, 16> bytes{};
  bool none() const { return bytes == std::array<std::uint8_t, 16>{}; }
  /// From a text that names the instant uniquely, a random number in it: the same on every host that is told the text.
  static CutId of(std::string_view text);
  std::string hex() const;
  /// None of a text that is no such.
  static CutId from_hex(std::string_view text);
  auto operator<=>(const CutId&) const = default;
};

/// `direct` (O_DIRECT) takes nothing from the page cache, which the guest's pages need, and was 4 to 6 times as fast on
/// the development machine; `page_cache` where the log is read back at once.
enum class Caching { page_cache, direct };

/// XXH3-64, seed 0.
std::uint64_t checksum_of(PageContents page);
std::uint64_t checksum_of_zeros();
bool is_zero(PageContents page);

}  // namespace yado::image

template <>
struct fmt::formatter<yado::image::PageNumber> : fmt::formatter<std::uint64_t> {
  template <class Context>
  auto format(yado::image::PageNumber page, Context& context) const {
    return fmt::formatter<std::uint64_t>::format(yado::image::value_of(page), context);
  }
};
