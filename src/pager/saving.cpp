#include "pager/saving.hpp"

namespace yado::pager {
namespace {
constexpr std::uint64_t pages_between_looks = SavePace::piece_bytes / page_bytes;  // an appender's buffer

/// Looked at again when half of what was too much is written: it is counted from the beginning.
class CanFixWatch {
 public:
  CanFixWatch(const PageStore& store, const Saving::CanFix& tell) : store_(store), tell_(tell) {}
  void after(const Saved& saved) {
    if (!tell_ || told_ || saved.pages < next_look_) return;
    const std::uint64_t pending = store_.pending_pages(), most = store_.most_aside();
    if (told_ = pending <= most; told_) return tell_(saved);
    next_look_ = saved.pages + std::max<std::uint64_t>((pending - most) / 2, pages_between_looks);
  }

 private:
  const PageStore& store_;
  const Saving::CanFix& tell_;
  bool told_ = false;
  std::uint64_t next_look_ = 0;
};
}  // namespace

Result<std::unique_ptr<Saving>> Saving::begin(PageStore& store, PageArchive& archive, const std::string& session,
                                              const SaveRequest& request, PageStore::Scope scope) {
  YADO_ASSIGN(const auto directory, archive.begin(session, request.name, request.base_name), "SAVE");
  auto writer = image::PageWriter::create(
      directory, {.guest_pages = store.pages(), .cut = request.cut, .base_cut = request.base});
  if (!writer) {
    archive.abandon(session, request.name);
    return context(writer.error(), "SAVE");
  }
  store.begin_cut(scope);
  return std::unique_ptr<Saving>(new Saving(store, archive, session, request, std::move(*writer)));
}

Saving::Saving(PageStore& store, PageArchive& archive, std::string session, SaveRequest request, image::PageWriter writer)
    : store_(store), archive_(archive), session_(std::move(session)), request_(std::move(request)), writer_(std::move(writer)),
      pace_(smaller_limit(archive.bytes_per_second(), request_.bytes_per_second)) {}

Saving::~Saving() {
  if (kept_) return;
  store_.end_cut(false);
  archive_.abandon(session_, request_.name);
}

Result<Saved> Saving::write(bool only_owned, const CanFix& can_fix) {
  image::PageSet owned;
  {
    const std::lock_guard lock(mutex_);
    owned = image::normalised(owned_);
  }
  const auto before = writer_.figures();
  std::uint64_t counted = 0;
  image::PageAppender appender = writer_.appender();
  const image::Round round{++rounds_};
  std::array<std::byte, page_bytes> content;
  Saved saved;
  CanFixWatch watch(store_, can_fix);
  watch.after(saved);
  for (PageNumber next = 0;;) {
    // Writers may wait for room there.
    YADO_ASSIGN(auto pending, store_.take_aside(content), "save");
    if (!pending) {
      YADO_ASSIGN(pending, store_.take_pending(next, content, which()), "save");
      if (pending) next = pending->page + 1;
    }
    // Looked at after the store: nothing is left of one that was closed, which is not to say that all was saved.
    if (stopped_) return fail(Errc::canceled, "the cut was abandoned");
    if (!pending) break;
    const image::PageNumber page{pending->page};
    if (only_owned && !image::contains(owned, page)) continue;
    YADO_TRY(pending->kind == PageKind::zero ? appender.put_zeros(page, round) : appender.put(page, content, round), "save");
    ++saved.pages;
    if (saved.pages % pages_between_looks == 0) {
      const std::uint64_t written = writer_.figures().bytes_written - before.bytes_written;
      wait_for_turn(written - std::exchange(counted, written));
      watch.after({saved.pages, written});
    }
  }
  YADO_TRY(appender.flush(), "save");
  saved.bytes = writer_.figures().bytes_written - before.bytes_written;
  wait_for_turn(saved.bytes - counted);
  return saved;
}

/// What comes during the first round is mostly on its way back: FINISH writes what is still here then.
PageStore::Which Saving::which() {
  const std::lock_guard lock(mutex_);
  return rounds_ == 1 && !fixed_ ? PageStore::Which::settled : PageStore::Which::all;
}

void Saving::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  stop_.notify_all();
}

/// So much was written since the last time: until a save that keeps to its rate has come as far.
void Saving::wait_for_turn(std::uint64_t written) {
  if (!pace_.limited()) return;
  const auto turn = pace_.after(written, std::chrono::steady_clock::now());
  std::unique_lock lock(mutex_);
  stop_.wait_until(lock, turn, [&] { return stopped_.load(); });
}

Result<Saved> Saving::round(const CanFix& can_fix) {
  auto saved = write(false, can_fix);
  if (saved) first_round_ = *saved;
  return saved;
}

Status Saving::fix() {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(fixed_, true)) store_.fix();
  return {};
}

Status Saving::own(const std::vector<KindRun>& runs) {
  const std::lock_guard lock(mutex_);
  if (!fixed_) return fail(Errc::conflict, "FINISH comes after FIX");
  if (!runs.empty() && runs.back().first + runs.back().pages > store_.pages())
    return fail(Errc::invalid_argument, "a page outside a memory of {} pages is owned", store_.pages());
  for (const KindRun& run : runs) owned_.push_back({image::PageNumber{run.first}, run.pages});
  return {};
}

Result<Saved> Saving::finish() {
  if (finished_) return finished_with_;
  YADO_ASSIGN(finished_with_, write(true), "FINISH");
  image::PageSet owned;
  {
    const std::lock_guard lock(mutex_);
    owned = image::normalised(owned_);
  }
  YADO_ASSIGN(finished_, writer_.finish(owned), "FINISH");
  finished_with_ = {finished_->records(), writer_.figures().bytes_written};
  return finished_with_;
}

Result<std::string> Saving::keep() {
  if (!finished_) return fail(Errc::conflict, "KEEP comes after FINISH");
  YADO_ASSIGN(kept_, archive_.keep(session_, request_.name, *finished_), "KEEP");
  store_.end_cut(true);
  return *kept_;
}

}  // namespace yado::pager
