#pragma once
// What a running checkpoint still has to save of the pages that are here, while they are written and move. Pure.
//
// `wanted`: pages that belong into the image: all, or those changed since its base. A wanted page is `unsaved` here when
// its newest content, if it is here, is not in this host's log. Who owns a page at the end decides whose record counts; so a page
// that left needs nothing, and one that came is unsaved until it was read here.
//
// A round may leave out what is hot: a page that was written since the round began would have to be saved once more, one that came since
// will go again or be written, and one that did so in both halves of the round before will in this one, too. Left out, it is read once, at the end.

#include "pager/page_bits.hpp"

namespace yado::pager {

class SaveProgress {
 public:
  /// `wanted` at the beginning; written pages join it.
  explicit SaveProgress(PageBits wanted)
      : wanted_(std::move(wanted)), unsaved_(wanted_), left_(wanted_.size()), used_(wanted_.size()), used_early_(wanted_.size()),
        used_twice_(wanted_.size()), hot_before_(wanted_.size()) {}

  void written(const PageRun& run) {
    wanted_.set(run);
    unsaved_.set(run);
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) use(page);
  }
  void came(PageNumber page) {
    if (wanted_.test(page)) unsaved_.set(page);
    use(page);
  }
  void goes(PageNumber page) { left_.set(page); }
  /// What was written up to now has been noted.
  void begin_round() {
    std::swap(hot_before_, used_twice_);
    used_twice_.clear();
    used_.clear();
    used_early_.clear();
  }
  /// The same.
  void middle_of_round() { used_early_ = used_; }
  bool is_hot(PageNumber page) const { return used_.test(page) || hot_before_.test(page); }
  /// The next pages to read, at most `most`, from `from` on, of those that are `here`; they count as saved now. `cold`: but for what is hot.
  std::vector<PageNumber> take(PageNumber from, std::size_t most, const PageBits& here, bool cold) {
    std::vector<PageNumber> pages;
    for (PageNumber page = unsaved_.next(from, here); page < unsaved_.size() && pages.size() < most; page = unsaved_.next(page + 1, here)) {
      if (cold && is_hot(page)) continue;
      unsaved_.reset(page);
      left_.reset(page);
      pages.push_back(page);
    }
    return pages;
  }
  /// After the page was read: what was read is its content. False: it left the file meanwhile, what was read may be a hole.
  bool was_here(PageNumber page) const { return !left_.test(page); }

  const PageBits& wanted() const { return wanted_; }
  std::uint64_t unsaved(const PageBits& here) const { return unsaved_.count(here); }
  /// About half of what is unsaved, wherever it is, lies before this page.
  PageNumber middle() const { return unsaved_.middle(); }

 private:
  void use(PageNumber page) {
    if (used_early_.test(page)) used_twice_.set(page);
    used_.set(page);
  }

  PageBits wanted_, unsaved_, left_;
  PageBits used_;        ///< written or come in this round
  PageBits used_early_;  ///< in its first half, once that is over
  PageBits used_twice_;  ///< in both halves
  PageBits hot_before_;  ///< used_twice_ of the round before
};

}  // namespace yado::pager
