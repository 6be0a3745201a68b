#pragma once
// The saving of one cut of a PageStore as a part of pages: SAVE, FIX, FINISH, then KEEP or ABANDON.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "image/page_writer.hpp"
#include "pager/image_archive.hpp"
#include "pager/page_store.hpp"
#include "pager/save_pace.hpp"

namespace yado::pager {

/// First a round, then fix, then finish, then keep; destruction abandons what was not kept. round(), finish() and keep() take
/// long and come from one thread at a time; the others from any.
class Saving {
 public:
  /// `scope`: all, or what changed since the base.
  static Result<std::unique_ptr<Saving>> begin(PageStore& store, PageArchive& archive, const std::string& session,
                                               const SaveRequest& request, PageStore::Scope scope);
  Saving(const Saving&) = delete;
  Saving& operator=(const Saving&) = delete;
  ~Saving();

  /// Told how much the first round has written when what it has left may as well be set aside (PageStore::most_aside): a FIX from then on makes no writer wait.
  using CanFix = std::function<void(const Saved&)>;
  /// Writes what is pending. Errors (also of finish): those of image::PageAppender and of PageStore::take_pending; `canceled`
  /// after stop(). No further step is of use then.
  Result<Saved> round(const CanFix& can_fix = {});
  /// The instant of the cut. Again: nothing.
  Status fix();
  /// These pages are owned, too.
  Status own(const std::vector<KindRun>& runs);
  /// Writes what is pending of the owned pages, and the index. Again: the same answer.
  Result<Saved> finish();
  Result<std::string> keep();
  /// Ends the round or the finish under way.
  void stop();

  const SaveRequest& request() const { return request_; }
  const Saved& first_round() const { return first_round_; }

 private:
  Saving(PageStore& store, PageArchive& archive, std::string session, SaveRequest request, image::PageWriter writer);
  Result<Saved> write(bool only_owned, const CanFix& can_fix = {});
  PageStore::Which which();
  void wait_for_turn(std::uint64_t written);

  PageStore& store_;
  PageArchive& archive_;
  const std::string session_;
  const SaveRequest request_;
  image::PageWriter writer_;
  std::uint32_t rounds_ = 0;
  SavePace pace_;
  Saved first_round_;
  std::atomic<bool> stopped_ = false;
  std::mutex mutex_;
  std::condition_variable stop_;               ///< with mutex_
  bool fixed_ = false;                         // guarded by mutex_
  std::vector<image::PageRange> owned_;        // guarded by mutex_
  std::optional<image::PageIndex> finished_;
  Saved finished_with_;
  std::optional<std::string> kept_;
};

}  // namespace yado::pager
