#include "pager/prefetch.hpp"

#include <algorithm>

namespace yado::pager {
namespace {
/// A new stream never begins larger than this: a wrong guess costs at most so many pages.
constexpr std::uint32_t most_at_first = 32;
}  // namespace

PageRun Prefetcher::window(PageNumber page) {
  ++faults_;
  Stream* oldest = &streams_[0];
  bool near = false;
  for (Stream& stream : streams_) {
    if (stream.pages == 0) {
      oldest = &stream;
      continue;
    }
    if (page >= stream.next && page - stream.next < stream.pages) {
      stream.pages = std::min(most_, stream.pages * 2);
      stream.next = page + stream.pages;
      stream.used_at = faults_;
      return {page, stream.pages};
    }
    const PageNumber begin = stream.next - std::min<PageNumber>(stream.next, 2 * most_at_first);
    near = near || (page >= begin && page < stream.next + most_at_first);
    if (oldest->pages != 0 && stream.used_at < oldest->used_at) oldest = &stream;
  }
  first_window_ = near ? std::min({first_window_ * 2, most_at_first, most_}) : std::max(first_window_ / 2, 1U);
  return begin(page, *oldest);
}

PageRun Prefetcher::begin(PageNumber page, Stream& stream) {
  const PageNumber first = page / first_window_ * first_window_;
  stream = {first + first_window_, first_window_, faults_};
  return {first, first_window_};
}

}  // namespace yado::pager
