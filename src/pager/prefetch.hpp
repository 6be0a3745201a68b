#pragma once
// How much to fetch around a page that somebody waits for. Pure.
//
// Like a kernel's read-ahead: a fault where a recent window ended continues that stream, and its window doubles up to
// `most`; a fault elsewhere begins a stream. How large it begins follows from how often faults lie near recent ones.

#include <array>
#include <cstdint>

#include "pager/page.hpp"

namespace yado::pager {

class Prefetcher {
 public:
  /// `most` 1: only the page itself, always.
  explicit Prefetcher(std::uint32_t most) : most_(most) {}
  /// The window to fetch for a fault at `page`; `page` is in it. May end beyond the memory.
  PageRun window(PageNumber page);

 private:
  struct Stream {
    PageNumber next = ~PageNumber{0};  ///< where the last window ended
    std::uint32_t pages = 0;           ///< its size
    std::uint64_t used_at = 0;
  };
  PageRun begin(PageNumber page, Stream& stream);

  std::uint32_t most_;
  std::uint32_t first_window_ = 1;
  std::uint64_t faults_ = 0;
  std::array<Stream, 16> streams_;  ///< one per thread or two: a guest's parallel readers must not push each other out
};

}  // namespace yado::pager
