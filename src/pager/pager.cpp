#include "pager/pager.hpp"

#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.hpp"
#include "os/clock.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {

constexpr std::size_t faults_at_once = 64;
/// What one eviction reads, at most: Copies sends no more pages with data in one request.
constexpr std::size_t block_pages = most_data_pages;
const std::array<std::byte, 64 * page_bytes> zeroes{};

const std::byte* null_if_zero(const std::byte* content) { return is_zero(PageData(content, page_bytes)) ? nullptr : content; }

template <class... Visitors>
struct Match : Visitors... {
  using Visitors::operator()...;
};

}  // namespace

Pager::Pager(GuestMemory& memory, RemoteMemory& remote, asio::any_io_executor network, const Options& options)
    : memory_(memory), remote_(remote), network_(std::move(network)), options_(options),
      blocks_(block_pages * page_bytes), stop_event_(::eventfd(0, EFD_CLOEXEC)), retry_(network_), prefetch_timer_(network_), table_(options.limits),
      pace_(os::now()), changed_(memory.pages()), changed_since_fix_(memory.pages()), watched_(memory.pages()) {
  fault_thread_ = std::thread([this] { serve_faults(); });
  evict_thread_ = std::thread([this] { serve_evictions(); });
}

Pager::~Pager() { stop(); }

void Pager::stop() {
  if (!fault_thread_.joinable()) return;
  const std::uint64_t one = 1;
  (void)!::write(stop_event_.get(), &one, sizeof one);
  {
    const std::lock_guard lock(jobs_mutex_);
    stopping_ = true;
  }
  let_punch();
  jobs_there_.notify_all();
  job_done_.notify_all();
  fault_thread_.join();
  evict_thread_.join();
}

void Pager::give_up(const Error& why) {
  {
    const std::lock_guard lock(table_mutex_);
    if (std::exchange(gave_up_, true)) return;
  }
  if (why.code != Errc::not_found) options_.lost(why);  // else the process has ended: there is nothing to lose any more
}

// ---- decisions -----------------------------------------------------------------------------------------------------

template <class Event>
void Pager::tell_table(Event event) {
  std::optional<Error> broken;
  {
    const std::lock_guard lock(table_mutex_);
    if (gave_up_) return;
    Actions actions;
    event(actions);
    if (const Status done = perform(actions); !done) broken = done.error();
  }
  if (broken) give_up(*broken);
}

/// A page that was out of view only to see its use comes back with its block, as the kernel's own fault-around does: one trap for all of it.
void Pager::note_use(PageNumber page, Instant now, Actions& actions) {
  if (use_) use_->used(page, now);
  if (!watched_.test(page)) return;
  const PageNumber first = page / watch_block_ * watch_block_, end = std::min(first + watch_block_, memory_.pages());
  Map run{first, 0};
  const auto show = [&] {
    if (run.pages > 0) actions.push_back(run);
  };
  for (PageNumber at = first; at < end; ++at) {
    if (at == page || !watched_.test(at) || table_.state(at) != PageState::local) continue;
    if (use_) use_->used(at, now);
    if (run.page + run.pages != at) {
      show();
      run = {at, 0};
    }
    ++run.pages;
  }
  show();
}

/// In their order: what the threads are told is queued under the lock.
Status Pager::perform(Actions& actions) {
  for (Action& action : actions) {
    if (const Map* map = std::get_if<Map>(&action)) {
      for (PageNumber page = map->page; page < map->page + map->pages; ++page) {
        if (rest_ && rest_->test(page)) YADO_TRY(copy_rest({&page, 1}), "page in");
        watched_.reset(page);
      }
      const auto mapped = memory_.map({map->page, map->pages}, writes_);
      if (!mapped) return std::unexpected(mapped.error());
      if (!*mapped) return fail(Errc::internal, "page {} should be in the memory file and is not", map->page);
      continue;
    }
    if (Fetch* fetch = std::get_if<Fetch>(&action)) {
      asio::post(network_, [this, pages = std::move(fetch->pages)]() mutable { this->fetch(std::move(pages)); });
      continue;
    }
    {
      const std::lock_guard lock(jobs_mutex_);
      jobs_.push_back(std::move(action));
      ++jobs_told_;
    }
    jobs_there_.notify_one();
  }
  return {};
}

/// Whoever takes table_mutex_ again at once would have it before a fault that waits for it.
void Pager::let_faults_pass() const {
  if (const std::size_t faults = faults_in_hand_) faults_in_hand_.wait(faults);
}

void Pager::serve_faults() {
  ::pthread_setname_np(::pthread_self(), "faults");
  std::array<PageNumber, faults_at_once> space;
  pollfd wanted[] = {{memory_.fault_fd(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
  for (;;) {
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) return give_up(fail_errno("wait for faults").error());
    if (wanted[1].revents != 0) return;
    const auto faults = memory_.faults(space);
    if (!faults) return give_up(faults.error());
    const Instant now = os::now();
    faults_in_hand_ = faults->size();
    for (const PageNumber page : *faults)
      tell_table([&](Actions& actions) {
        table_.fault(page, actions);
        note_use(page, now, actions);
        if (!table_.needs_remote(page)) return;
        waiting_since_.try_emplace(page, now);
        pace_.wished(now);
      });
    faults_in_hand_ = 0;
    faults_in_hand_.notify_all();
    // A memory that is gone reports an end for ever.
    if (faults->empty() && (wanted[0].revents & (POLLERR | POLLHUP)) != 0) return;
  }
}

// ---- network thread ------------------------------------------------------------------------------------------------

void Pager::fetch(std::vector<PageNumber> pages) {
  for (std::size_t at = 0; at < pages.size(); at += most_data_pages) {
    const auto count = std::min(most_data_pages, pages.size() - at);
    remote_.fetch({pages.begin() + static_cast<long>(at), pages.begin() + static_cast<long>(at + count)}, [this](Result<Piece> piece) {
      if (!piece) return give_up(piece.error());
      if (const Status placed = place(*piece); !placed) give_up(placed.error());
    });
  }
}

/// Neighbours go in one call.
Status Pager::place(const Piece& piece) {
  const auto& pages = piece.pages;
  const std::lock_guard placing(placing_mutex_);
  Writes writes;
  {
    const std::lock_guard lock(table_mutex_);
    writes = writes_;
  }
  for (std::size_t i = 0; i < pages.size();) {
    const std::byte* content = piece.contents[i];
    const std::size_t most = content == nullptr ? zeroes.size() / page_bytes : pages.size();
    std::size_t n = 1;
    while (i + n < pages.size() && n < most && pages[i + n] == pages[i] + n &&
           piece.contents[i + n] == (content == nullptr ? nullptr : content + n * page_bytes))
      ++n;
    YADO_TRY(memory_.place(pages[i], {content == nullptr ? zeroes.data() : content, n * page_bytes}, writes), "page in");
    i += n;
  }
  const Instant now = os::now();
  tell_table([&](Actions& actions) {
    for (const PageNumber page : pages) {
      if (save_) save_->came(page);
      if (const auto waits = waiting_since_.find(page); waits != waiting_since_.end()) {
        fault_times_.add(now - waits->second);
        waiting_since_.erase(waits);
      }
    }
    table_.fetched(pages, actions);
    prefetched(pages, now);
    prefetch_more(actions);
  });
  return {};
}

/// One piece after the other while somebody wishes for pages; several at once, which a long way asks for, while nobody does.
void Pager::prefetch_more(Actions& actions) {
  constexpr std::size_t window = 64;
  const Instant now = os::now();
  while (prefetched_ < to_prefetch_.size()) {
    const bool alone = pace_.alone(now);
    if (alone ? prefetching_.size() + window > BackgroundPace::large_piece : !prefetching_.empty()) return;
    if (now < next_piece_) return prefetch_later(next_piece_);
    const std::span rest = std::span<const PageNumber>(to_prefetch_).subspan(prefetched_);
    const std::size_t before = actions.size();
    const std::size_t seen = table_.prefetch(rest.first(std::min({window, pace_.piece(now), rest.size()})), actions);
    if (seen == 0) return;  // no room
    prefetched_ += seen;
    piece_begun_ = now;
    if (actions.size() == before) continue;
    const auto& asked = std::get<Fetch>(actions.back()).pages;
    prefetching_.insert(asked.begin(), asked.end());
  }
}

void Pager::prefetched(std::span<const PageNumber> pages, Instant now) {
  if (prefetching_.empty()) return;
  for (const PageNumber page : pages) prefetching_.erase(page);
  if (prefetching_.empty()) next_piece_ = now + pace_.pause(now - piece_begun_, now);
}

void Pager::prefetch_later(Instant when) {
  prefetch_timer_.expires_after(std::chrono::duration_cast<asio::steady_timer::duration>(when - os::now()));
  prefetch_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) tell_table([&](Actions& actions) { prefetch_more(actions); });
  });
}

void Pager::end_if_lost() {
  std::optional<PageBits> here;
  {
    const std::lock_guard lock(table_mutex_);
    if (has_cut_) here = table_.here();
  }
  if (!here) return;
  if (const Status whole = remote_.none_lost(*here); !whole) give_up(whole.error());
}

// ---- evict thread --------------------------------------------------------------------------------------------------

void Pager::serve_evictions() {
  ::pthread_setname_np(::pthread_self(), "evictions");
  for (;;) {
    Action job;
    bool watch = false;
    {
      std::unique_lock lock(jobs_mutex_);
      jobs_there_.wait(lock, [&] { return stopping_ || !jobs_.empty() || watch_from_; });
      if (stopping_) return;
      watch = jobs_.empty();
      if (!watch) {
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
    }
    if (watch) {
      if (const Status done = watch_piece(); !done) return give_up(done.error());
      continue;
    }
    const Status done = std::visit(Match{[&](const Unmap& unmap) { return this->unmap(unmap.pages); },
                                         [&](const Evict& evict) { return this->evict(evict); },
                                         [&](const Punch& punch) { return this->punch(punch); },
                                         [](const auto&) -> Status { return {}; }},
                                   job);
    {
      const std::lock_guard lock(jobs_mutex_);
      ++jobs_done_;
    }
    job_done_.notify_all();
    if (!done) return give_up(done.error());
  }
}

Status Pager::unmap(std::span<const PageNumber> pages) {
  const auto runs = runs_of(pages);
  const std::lock_guard noting(noting_mutex_);
  YADO_TRY(memory_.unmap(runs), "page out");
  std::vector<PageRun> written;
  YADO_TRY(memory_.written_before_unmap(runs, [&](const PageRun& run) { written.push_back(run); }), "page out");
  const std::lock_guard lock(table_mutex_);
  note_written(written);
  return {};
}

Status Pager::evict(const Evict& evict) {
  YADO_TRY(unmap(evict.pages), "page out");
  Evicted evicted;
  auto block = blocks_.take();
  std::byte* at = block.get();
  for (const PageRun& run : runs_of(evict.pages)) {
    const std::span contents(at, std::size_t{run.pages} * page_bytes);
    YADO_TRY(memory_.read(run.first, contents), "page out");
    for (std::uint32_t i = 0; i < run.pages; ++i, at += page_bytes) {
      const PageData page(at, page_bytes);
      evicted.piece.pages.push_back(run.first + i);
      evicted.piece.contents.push_back(is_zero(page) ? nullptr : at);
      evicted.sums.push_back(sum_of(page, options_.seed));
    }
  }
  evicted.piece.hold = std::move(block);
  evicted.unchanged = unchanged_since_cut(evict);
  asio::post(network_, [this, evict, evicted = std::move(evicted)]() mutable {
    remote_.store(std::move(evicted), [this, evict](const Status& stored) {
      if (!stored && retry_pause_ == 0ns) log::warn("pager: pages stay here, the memory servers do not take them: {}", stored.error().text());
      std::vector<PageNumber> undone;
      tell_table([&](Actions& actions) {
        if (!stored) return table_.store_failed(evict.ticket, actions);
        table_.stored(evict.ticket, actions);
        for (const PageNumber page : evict.pages)
          if (table_.state(page) != PageState::punching) undone.push_back(page);
      });
      if (!undone.empty()) remote_.kept(undone);
      if (stored) retry_pause_ = 0ns;
      else evict_again_later();
    });
  });
  return {};
}

/// A trap costs some 65 us whatever it brings back, a page in it 0.3 (adr/0010): so few of them that a process which uses all of its memory in the
/// first seconds loses a twentieth of them at most. Finer than the kernel's fault-around (64 KiB) it is never.
void Pager::watch_use() {
  constexpr PageNumber most_traps = 2048, least = 16;
  {
    const std::lock_guard lock(table_mutex_);
    watch_block_ = std::bit_ceil(std::max(least, table_.counts().mapped / most_traps));
  }
  {
    const std::lock_guard lock(jobs_mutex_);
    watch_from_ = 0;
  }
  jobs_there_.notify_one();
}

void Pager::watch_no_more() {
  const std::lock_guard lock(jobs_mutex_);
  watch_from_.reset();
}

/// Small: whoever puts pages into place waits for it. What is being put there is not of it: a trap of a page that the table takes for one on its way
/// would be answered by nobody.
Status Pager::watch_piece() {
  constexpr PageNumber piece = 512;
  PageNumber from = 0;
  {
    const std::lock_guard lock(jobs_mutex_);
    if (!watch_from_) return {};
    from = *watch_from_;
  }
  const std::lock_guard placing(placing_mutex_);
  std::vector<PageNumber> pages;
  {
    const std::lock_guard lock(table_mutex_);
    for (PageNumber page = from; page < std::min(from + piece, memory_.pages()); ++page) {
      if (table_.state(page) != PageState::local) continue;
      watched_.set(page);
      pages.push_back(page);
    }
  }
  if (!pages.empty()) YADO_TRY(unmap(pages), "watch its use");
  const std::lock_guard lock(jobs_mutex_);
  if (watch_from_ != from) return {};  // it was ended, or begun anew
  if (from + piece < memory_.pages()) watch_from_ = from + piece;
  else watch_from_.reset();
  return {};
}

bool Pager::watching() const {
  const std::lock_guard lock(jobs_mutex_);
  return watch_from_.has_value();
}

/// Asked after they were read: who used a page since it was unmapped has undone its eviction, and what was read of it may be of any time.
std::vector<bool> Pager::unchanged_since_cut(const Evict& evict) const {
  const std::lock_guard lock(table_mutex_);
  if (!has_cut_) return {};
  std::vector<bool> unchanged(evict.pages.size());
  for (std::size_t i = 0; i < evict.pages.size(); ++i) unchanged[i] = table_.leaves_by(evict.ticket, evict.pages[i]) && !changed_.test(evict.pages[i]);
  return unchanged;
}

/// No server says when it has room again: asked anew after growing pauses.
void Pager::evict_again_later() {
  constexpr nanoseconds first_pause = 50ms, longest_pause = 5s;
  retry_pause_ = std::clamp<nanoseconds>(2 * retry_pause_, first_pause, longest_pause);
  retry_.expires_after(std::chrono::duration_cast<asio::steady_timer::duration>(retry_pause_));
  retry_.async_wait([this](const boost::system::error_code& error) {
    if (!error) tell_table([&](Actions& actions) { table_.resume(actions); });
  });
}

/// What is to be copied still is copied first. Not kept back until all is: whoever stands still for the checkpoint may want a page, and so its room.
Status Pager::punch(const Punch& punch) {
  {
    std::unique_lock lock(table_mutex_);
    punches_allowed_.wait(lock, [&] { return !fixing_; });
    if (rest_) {
      std::vector<PageNumber> rest;
      for (const PageNumber page : punch.pages)
        if (rest_->test(page)) rest.push_back(page);
      YADO_TRY(copy_rest(rest), "page out");
    }
    if (save_)
      for (const PageNumber page : punch.pages) save_->goes(page);
  }
  for (const PageRun& run : runs_of(punch.pages)) YADO_TRY(memory_.punch(run), "page out");
  tell_table([&](Actions& actions) { table_.punched(punch.ticket, actions); });
  return {};
}

// ---- the owner -----------------------------------------------------------------------------------------------------

void Pager::adopt_local(const PageRun& run) {
  const std::lock_guard lock(table_mutex_);
  table_.adopt_local(run);
}

/// Nothing is in view yet, and what comes is put there to be noticed when it is written.
void Pager::count_changes(PageBits changed) {
  const std::lock_guard lock(table_mutex_);
  writes_ = Writes::noticed;
  has_cut_ = true;
  changed_ = std::move(changed);
}

std::optional<PageBits> Pager::changed() const {
  const std::lock_guard lock(table_mutex_);
  return has_cut_ ? std::optional(changed_) : std::nullopt;
}

void Pager::set_local_limit(std::uint64_t pages) {
  tell_table([&](Actions& actions) { table_.set_local_limit(pages, actions); });
}

std::uint64_t Pager::local_limit() const {
  const std::lock_guard lock(table_mutex_);
  return table_.local_limit();
}

void Pager::prefetch(std::vector<PageNumber> pages) {
  tell_table([&](Actions&) {
    to_prefetch_ = std::move(pages);
    prefetched_ = 0;
  });
  asio::post(network_, [this] { tell_table([&](Actions& actions) { prefetch_more(actions); }); });
}

std::size_t Pager::bring(std::span<const PageNumber> pages, std::vector<PageNumber>& here) {
  std::size_t seen = 0;
  tell_table([&](Actions& actions) { seen = table_.bring(pages, here, actions); });
  return seen;
}

std::vector<PageNumber> Pager::by_recency() const {
  constexpr std::uint32_t piece = 1 << 14;
  PageTable::Recency recency(memory_.pages());
  for (PageNumber first = 0; first < memory_.pages(); first += piece) {
    let_faults_pass();
    const std::lock_guard lock(table_mutex_);
    table_.take_down({first, static_cast<std::uint32_t>(std::min<std::uint64_t>(piece, memory_.pages() - first))}, recency);
  }
  return recency.pages();
}

// ---- checkpoint ----------------------------------------------------------------------------------------------------

void Pager::note_written(std::span<const PageRun> runs) {
  if (writes_ == Writes::unnoticed) return;
  for (const PageRun& run : runs) {
    changed_.set(run);
    if (fixed_) changed_since_fix_.set(run);
    if (save_) save_->written(run);
  }
}

std::vector<PageNumber> Pager::order_of_use() const {
  std::optional<UseOrder> use;
  {
    const std::lock_guard lock(table_mutex_);
    use = use_;
  }
  std::vector<PageNumber> order = use ? use->order() : std::vector<PageNumber>();
  for (const PageNumber page : by_recency())
    if (!use || !use->has(page)) order.push_back(page);
  return order;
}

std::vector<PageNumber> Pager::used_since_cut() const {
  const std::lock_guard lock(table_mutex_);
  return use_ && !fixed_ ? use_->order() : std::vector<PageNumber>();
}

/// The kernel forgets what it tells.
Status Pager::note_written_pages() {
  const std::lock_guard noting(noting_mutex_);
  std::vector<PageRun> written;
  YADO_TRY(memory_.collect_written([&](const PageRun& run) { written.push_back(run); }), "written pages");
  const std::lock_guard lock(table_mutex_);
  note_written(written);
  return {};
}

/// The kernel does not forget it: a page that leaves meanwhile is noted twice.
Status Pager::see_written_pages() {
  std::vector<PageRun> written;
  YADO_TRY(memory_.see_written([&](const PageRun& run) { written.push_back(run); }), "written pages");
  const std::lock_guard lock(table_mutex_);
  note_written(written);
  return {};
}

Status Pager::begin_save(bool incremental) {
  if (incremental && !has_cut_) return fail(Errc::conflict, "there is no earlier checkpoint of this memory to save changes from");
  bool first = false;
  {
    const std::lock_guard lock(table_mutex_);
    if (save_) return fail(Errc::conflict, "a checkpoint of this memory is under way");
    first = std::exchange(writes_, Writes::noticed) == Writes::unnoticed;
  }
  if (first) YADO_TRY(memory_.notice_writes(), "checkpoint");
  const std::lock_guard lock(table_mutex_);
  save_.emplace(incremental ? changed_ : PageBits(changed_.size(), true));
  return {};
}

/// One behind the other.
Status Pager::read(std::span<const PageNumber> pages, std::byte* to) const {
  for (const PageRun& run : runs_of(pages)) {
    YADO_TRY(memory_.read(run.first, {to, std::size_t{run.pages} * page_bytes}), "checkpoint");
    to += std::size_t{run.pages} * page_bytes;
  }
  return {};
}

Status Pager::read_here(std::span<const PageNumber> pages, const SaveSink& sink) {
  auto block = blocks_.take();
  YADO_TRY(read(pages, block.get()), "checkpoint");
  std::vector<bool> is_good(pages.size());
  {
    const std::lock_guard lock(table_mutex_);
    for (std::size_t i = 0; i < pages.size(); ++i) is_good[i] = save_->was_here(pages[i]);
  }
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::byte* content = block.get() + i * page_bytes;
    if (is_good[i]) YADO_TRY(sink(pages[i], null_if_zero(content)), "checkpoint");
  }
  return {};
}

Result<Pager::Round> Pager::save_round(const SaveSink& sink, Hot hot) {
  return round_into([&](PageNumber page, const std::byte* content) {
    last_.erase(page);  // a copy that is older
    return sink(page, content);
  }, hot);
}

/// Looks at what is written while a round goes on, and begins anew in the middle of it.
class Pager::RoundWatch {
 public:
  RoundWatch(Pager& pager, PageNumber middle) : pager_(pager), middle_(middle) {}
  Status after(PageNumber page) {
    if (page >= middle_) {
      middle_ = pager_.pages();
      YADO_TRY(pager_.note_written_pages(), "checkpoint");
      const std::lock_guard lock(pager_.table_mutex_);
      pager_.save_->middle_of_round();
      return {};
    }
    const Instant begun = os::now();
    if (begun < next_look_) return {};
    YADO_TRY(pager_.see_written_pages(), "checkpoint");
    const Instant now = os::now();
    next_look_ = now + 31 * (now - begun);  // however large the memory is, a small part of the time
    return {};
  }

 private:
  Pager& pager_;
  PageNumber middle_;
  Instant next_look_{};
};

Result<Pager::Round> Pager::round_into(const SaveSink& sink, Hot hot) {
  YADO_TRY(note_written_pages(), "checkpoint");
  PageNumber middle = 0;
  {
    const std::lock_guard lock(table_mutex_);
    save_->begin_round();
    if (hot == Hot::leave) middle = save_->middle();
  }
  RoundWatch watch(*this, middle);
  Round round;
  PageNumber from = 0;
  for (;;) {
    std::vector<PageNumber> pages;
    {
      const std::lock_guard lock(table_mutex_);
      pages = save_->take(from, block_pages, table_.here(), hot == Hot::leave);
    }
    if (pages.empty()) break;
    YADO_TRY(read_here(pages, sink), "checkpoint");
    round.pages += pages.size();
    from = pages.back() + 1;
    if (hot == Hot::leave) YADO_TRY(watch.after(from - 1), "checkpoint");
  }
  YADO_TRY(note_written_pages(), "checkpoint");
  const std::lock_guard lock(table_mutex_);
  round.left = save_->unsaved(table_.here());
  return round;
}

/// A page that was copied before takes its new content where the old one was: no memory is asked for while the process stands still.
Pager::SaveSink Pager::copies() {
  return [this](PageNumber page, const std::byte* content) -> Status {
    std::vector<std::byte>& copy = last_[page];
    if (content == nullptr) copy.clear();
    else copy.assign(content, content + page_bytes);
    return {};
  };
}

Result<std::uint64_t> Pager::copy_round() {
  YADO_ASSIGN(const Round round, round_into(copies(), Hot::save), "copy");
  return round.left;
}

Result<Pager::Cut> Pager::fix_save() {
  {
    const std::lock_guard lock(table_mutex_);
    fixing_ = true;
  }
  watch_no_more();
  YADO_TRY(note_written_pages(), "checkpoint");
  Cut cut{here(), PageBits(memory_.pages())};
  std::vector<PageNumber> rest;
  {
    const std::lock_guard lock(table_mutex_);
    cut.changed = save_->wanted();
    rest = save_->take(0, memory_.pages(), cut.here, false);
    rest_.emplace(memory_.pages());
    for (const PageNumber page : rest) rest_->set(page);
    changed_since_fix_.clear();
    use_.emplace(memory_.pages(), os::now());
    fixed_ = true;
    fixing_ = false;
  }
  punches_allowed_.notify_all();
  // Those that were out of view already count as written once more in the next delta: what they were written for left no marker.
  YADO_TRY(unmap(rest), "checkpoint");
  return cut;
}

Status Pager::copy_rest(std::span<const PageNumber> pages) {
  auto block = blocks_.take();
  YADO_TRY(read(pages, block.get()), "checkpoint");
  const SaveSink copy = copies();
  for (std::size_t i = 0; i < pages.size(); ++i) {
    YADO_TRY(copy(pages[i], null_if_zero(block.get() + i * page_bytes)), "checkpoint");
    rest_->reset(pages[i]);
  }
  return {};
}

/// A few at a time, and faults first: whoever waits for a page waits for one piece at most. What was in view is so again.
Status Pager::copy_rest() {
  constexpr std::size_t piece = 16;
  for (PageNumber from = 0;;) {
    let_faults_pass();
    const std::lock_guard lock(table_mutex_);
    if (!rest_) return {};
    std::vector<PageNumber> pages;
    for (from = rest_->next(from); from < rest_->size() && pages.size() < piece; from = rest_->next(from + 1)) pages.push_back(from);
    if (pages.empty()) break;
    YADO_TRY(copy_rest(pages), "checkpoint");
    Actions in_view;
    for (const PageNumber page : pages)
      if (table_.state(page) == PageState::local) in_view.push_back(Map{page});
    YADO_TRY(perform(in_view), "checkpoint");
  }
  let_punch();
  return {};
}

void Pager::let_punch() {
  {
    const std::lock_guard lock(table_mutex_);
    rest_.reset();
    fixing_ = false;
  }
  punches_allowed_.notify_all();
}

Status Pager::finish_save(const SaveSink& sink) {
  YADO_TRY(copy_rest(), "checkpoint");
  for (const auto& [page, content] : last_) YADO_TRY(sink(page, content.empty() ? nullptr : content.data()), "checkpoint");
  last_.clear();
  return {};
}

void Pager::end_save(bool kept) {
  let_punch();
  last_.clear();
  const std::lock_guard lock(table_mutex_);
  if (kept) changed_ = changed_since_fix_;
  has_cut_ = kept || has_cut_;
  fixed_ = false;
  if (!kept) use_.reset();
  save_.reset();
}

std::uint64_t Pager::unsaved() const {
  const std::lock_guard lock(table_mutex_);
  return save_ ? save_->unsaved(table_.here()) : 0;
}

// ---- for another main host -----------------------------------------------------------------------------------------

std::vector<bool> Pager::staying(std::span<const PageNumber> pages) {
  std::vector<bool> stay(pages.size());
  const std::lock_guard lock(table_mutex_);
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const PageState state = table_.state(pages[i]);
    stay[i] = state == PageState::local || state == PageState::unmapped;
    if (!stay[i] && save_) save_->came(pages[i]);
  }
  return stay;
}

void Pager::save_again(std::span<const PageNumber> pages) {
  const std::lock_guard lock(table_mutex_);
  for (const PageNumber page : pages)
    if (save_) save_->came(page);
}

void Pager::keep_all() {
  tell_table([&](Actions& actions) {
    prefetched_ = to_prefetch_.size();
    table_.set_local_limit(memory_.pages(), actions);
  });
  std::unique_lock lock(jobs_mutex_);
  job_done_.wait(lock, [&, last = jobs_told_] { return stopping_ || jobs_done_ >= last; });
}

void Pager::keep_all_no_more(std::uint64_t limit) {
  const std::lock_guard lock(table_mutex_);
  table_.set_local_limit(limit);
}

PageBits Pager::here() const {
  const std::scoped_lock lock(placing_mutex_, table_mutex_);
  return table_.here();
}

PagerFigures Pager::figures() const {
  const std::lock_guard lock(table_mutex_);
  return {table_.counts(), fault_times_.percentile(0.5), fault_times_.percentile(0.99), fault_times_.total()};
}

}  // namespace yado::pager
