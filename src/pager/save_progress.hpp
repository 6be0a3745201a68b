#pragma once
// What a running checkpoint still has to save of the pages that are here, while they are written and move. Pure.
//
// `wanted`: pages that belong into the image: all, or those changed since its base. A wanted page is `unsaved` here when
// its newest content, if it is here, is not in this host's log. Who owns a page at the end decides whose record counts; so a page
// that left needs nothing, and one that came is unsaved until it was read here.

#include "pager/page_set.hpp"

namespace yado::pager {

class SaveProgress {
 public:
  /// `wanted` at the beginning; written pages join it.
  explicit SaveProgress(PageBits wanted) : wanted_(std::move(wanted)), unsaved_(wanted_), left_(wanted_.size()) {}

  void written(const PageRun& run) {
    wanted_.set(run);
    unsaved_.set(run);
  }
  void came(PageNumber page) {
    if (wanted_.test(page)) unsaved_.set(page);
  }
  void goes(PageNumber page) { left_.set(page); }

  /// The next pages to read, at most `most`, from `from` on, which `here` accepts; they count as saved now.
  template <class Here>
  std::vector<PageNumber> take(PageNumber from, std::size_t most, Here here) {
    std::vector<PageNumber> pages;
    for (PageNumber page = unsaved_.next(from); page < unsaved_.size() && pages.size() < most; page = unsaved_.next(page + 1)) {
      if (!here(page)) continue;
      unsaved_.reset(page);
      left_.reset(page);
      pages.push_back(page);
    }
    return pages;
  }
  /// After the page was read: what was read is its content. False: it left the file meanwhile, what was read may be a hole.
  bool was_here(PageNumber page) const { return !left_.test(page); }

  const PageBits& wanted() const { return wanted_; }
  template <class Here>
  std::uint64_t unsaved(Here here) const {
    std::uint64_t count = 0;
    for (PageNumber page = unsaved_.next(0); page < unsaved_.size(); page = unsaved_.next(page + 1)) count += here(page) ? 1 : 0;
    return count;
  }

 private:
  PageBits wanted_, unsaved_, left_;
};

}  // namespace yado::pager
