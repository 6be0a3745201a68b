#pragma once
// In which order pages were used since an instant, as far as their use was noticed, for a while: what an image's working set is made of. Pure.

#include <vector>

#include "base/time.hpp"
#include "pager/page_bits.hpp"

namespace yado::pager {

/// The "first seconds" after a cut.
inline constexpr nanoseconds use_window = std::chrono::seconds(3);

class UseOrder {
 public:
  /// More than 4 GiB in the first seconds is no order worth following, and 8 MiB of page numbers.
  static constexpr std::size_t most = 1 << 20;

  UseOrder(std::uint64_t pages, Instant begun) : seen_(pages), until_(begun + use_window) {}
  void used(PageNumber page, Instant now) {
    if (now > until_ || order_.size() == most || seen_.test(page)) return;
    seen_.set(page);
    order_.push_back(page);
  }
  /// First used first; each once.
  const std::vector<PageNumber>& order() const { return order_; }
  bool has(PageNumber page) const { return seen_.test(page); }
  /// Nothing is noted from then on.
  Instant until() const { return until_; }

 private:
  PageBits seen_;
  Instant until_;
  std::vector<PageNumber> order_;
};

}  // namespace yado::pager
