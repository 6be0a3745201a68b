#pragma once
// A set of pages: a bit each.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "pager/page.hpp"

namespace yado::pager {

class PageBits {
 public:
  explicit PageBits(std::uint64_t pages, bool all = false) : pages_(pages), words_((pages + 63) / 64) {
    if (all) fill();
  }
  std::uint64_t size() const { return pages_; }
  bool test(PageNumber page) const { return words_[page / 64] >> page % 64 & 1; }
  void set(PageNumber page) { words_[page / 64] |= std::uint64_t{1} << page % 64; }
  void reset(PageNumber page) { words_[page / 64] &= ~(std::uint64_t{1} << page % 64); }
  void set(const PageRun& run) {
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) set(page);
  }
  void fill() {
    for (auto& word : words_) word = ~std::uint64_t{0};
    if (pages_ % 64 != 0) words_.back() = (std::uint64_t{1} << pages_ % 64) - 1;
  }
  /// Page 64 n + i is bit i of word n; behind the last page there are zeros.
  std::span<const std::uint64_t> words() const { return words_; }
  std::span<std::uint64_t> words() { return words_; }
  void clear() { words_.assign(words_.size(), 0); }
  std::uint64_t count() const {
    std::uint64_t sum = 0;
    for (const auto word : words_) sum += static_cast<std::uint64_t>(std::popcount(word));
    return sum;
  }
  PageBits& operator|=(const PageBits& other) {
    for (std::size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
    return *this;
  }
  /// About half of the set lies before this page: to 64 pages.
  PageNumber middle() const {
    const std::uint64_t half = count() / 2;
    std::size_t at = 0;
    for (std::uint64_t sum = 0; at < words_.size() && sum < half; ++at) sum += static_cast<std::uint64_t>(std::popcount(words_[at]));
    return std::min<PageNumber>(at * 64, pages_);
  }
  /// The first page from `from` on that is in the set; size() for none.
  PageNumber next(PageNumber from) const {
    return next_of(from, [&](std::size_t at) { return words_[at]; });
  }
  /// In both; they are of one size.
  PageNumber next(PageNumber from, const PageBits& other) const {
    return next_of(from, [&](std::size_t at) { return words_[at] & other.words_[at]; });
  }
  std::uint64_t count(const PageBits& other) const {
    std::uint64_t sum = 0;
    for (std::size_t at = 0; at < words_.size(); ++at) sum += static_cast<std::uint64_t>(std::popcount(words_[at] & other.words_[at]));
    return sum;
  }

 private:
  template <class Word>
  PageNumber next_of(PageNumber from, Word word_at) const {
    for (std::size_t at = from / 64; at < words_.size(); ++at) {
      const std::uint64_t word = at == from / 64 ? word_at(at) & ~std::uint64_t{0} << from % 64 : word_at(at);
      if (word != 0) return at * 64 + static_cast<std::uint64_t>(std::countr_zero(word));
    }
    return pages_;
  }

  std::uint64_t pages_;
  std::vector<std::uint64_t> words_;
};

}  // namespace yado::pager
