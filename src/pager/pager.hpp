#pragma once
// The pager of one memory: carries out what PageTable decides, with the kernel (GuestMemory) and other hosts (RemoteMemory).
//
//   fault thread     waits for faults; maps what is in the file
//   network thread   the owner's io_context, where the RemoteMemory lives: fetches, puts pages into place, stores
//   evict thread     takes pages out of view, reads and sums them, punches them out; in the order it was told
//
// One lock guards the table. It is held for decisions and for bringing one page into view (so that no later decision to
// evict that page can overtake it), never over the network, a copy or an answer of the paged process. The table is told of what was done a moment
// later; who has to know what is so now waits for that moment (placing_mutex_, noting_mutex_).

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/time.hpp"
#include "pager/background_pace.hpp"
#include "pager/block_pool.hpp"
#include "pager/guest_memory.hpp"
#include "pager/histogram.hpp"
#include "pager/page_table.hpp"
#include "pager/remote_memory.hpp"
#include "pager/save_progress.hpp"
#include "pager/use_order.hpp"

namespace yado::pager {

struct PagerFigures {
  PageTable::Counts table;
  nanoseconds fault_p50{0}, fault_p99{0};  ///< from the report of a fault that needed another host to the page in place
  std::uint64_t remote_faults = 0;
};

class Pager {
 public:
  struct Options {
    TableLimits limits;
    std::uint64_t seed = 0;   ///< of the sums given to RemoteMemory::store; the same as its own
    /// Once, from any of its threads: this memory cannot be kept any more. The process must not run on.
    std::function<void(const Error&)> lost;
  };
  /// The memory's faults are served from here on; the process still has to be let go. `remote` lives on `network`, a
  /// single-threaded executor, and outlives this; the owner stops `network` only after stop().
  Pager(GuestMemory& memory, RemoteMemory& remote, boost::asio::any_io_executor network, const Options& options);
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;
  ~Pager();

  /// Before the process is let go: these pages are in the file, out of view.
  void adopt_local(const PageRun& run);
  /// Before the process is let go, of a memory that is as at a cut that was kept (restored from its image): the next checkpoint may be of what changed since.
  void count_changes() { count_changes(PageBits(memory_.pages())); }
  /// The same of one that was left by another main host, with what was `changed` there since such a cut.
  void count_changes(PageBits changed);
  /// What was written since the last cut that was kept, as far as it was noted; nothing when there is none.
  std::optional<PageBits> changed() const;
  /// When servers have died: if pages that are not here are nowhere else, and a cut was kept, this memory is lost. What the process does from then on
  /// can be saved no more; it goes back to the cut now rather than when it wants one of them. Without a cut it may be lucky. On the network's thread.
  void end_if_lost();
  void set_local_limit(std::uint64_t pages);
  std::uint64_t local_limit() const;
  /// Fetches these in the background, in this order, as long as there is room. Once.
  void prefetch(std::vector<PageNumber> pages);
  /// Fetches pages that shall be here: how many of them, from the first on, are coming or here; the others find no room. `here`: those
  /// in the file that are not being evicted. On the network's thread.
  std::size_t bring(std::span<const PageNumber> pages, std::vector<PageNumber>& here);
  /// Pages that are here, the last one seen in use first.
  std::vector<PageNumber> by_recency() const;

  // A checkpoint of what is here (remote pages are their servers' business), from one thread, in this order:
  //
  //   begin_save · save_round, then copy_round, again and again while the process runs · [it stands still] fix_save [it runs on] · copy_rest ·
  //   finish_save · kept or abandoned

  /// What a round does with pages that are written again and again (save_progress.hpp).
  enum class Hot : bool { save, leave };
  /// A page and its content; null: zeros. May take its time: nothing waits for it but the checkpoint.
  using SaveSink = std::function<Status(PageNumber, const std::byte* content)>;
  /// `incremental`: what changed since the last kept cut; without one, `conflict`.
  Status begin_save(bool incremental);
  struct Round {
    std::uint64_t pages = 0;  ///< saved in it
    std::uint64_t left = 0;   ///< here and unsaved after it, without what was written meanwhile
  };
  Result<Round> save_round(const SaveSink& sink, Hot hot = Hot::save);
  /// The same into memory, which takes what a disk is too slow for: finish_save has it, so far as nothing newer came. Returns `left`.
  Result<std::uint64_t> copy_round();
  /// The instant of the image. What is left is only taken out of view: whoever uses such a page afterwards waits until it was copied.
  struct Cut {
    PageBits here;     ///< owned by this host
    PageBits changed;  ///< belongs into the image, wherever it is
  };
  Result<Cut> fix_save();
  /// Takes what is left into memory. Until this nothing leaves.
  Status copy_rest();
  /// After copy_rest(): what is in view is taken out of it, piece by piece while nothing has to leave, so that its use traps and is seen.
  void watch_use();
  /// That is not done yet.
  bool watching() const;
  /// Until end_save(): what a process that goes on from the cut is likely to want. First what this one has wanted since, in that order, as far as it
  /// was noticed; then what is here, the last one seen in use first.
  std::vector<PageNumber> order_of_use() const;
  Status finish_save(const SaveSink& sink);
  void end_save(bool kept);
  /// In which order pages were used in the first seconds (use_window) after the last cut that was kept; until they are over, as far as they have
  /// come. Nothing while the next checkpoint stands between its cut and its end, and without any.
  std::vector<PageNumber> used_since_cut() const;
  /// Pages that are here and have yet to be saved; none without a checkpoint. What is written between two rounds is not known of yet.
  std::uint64_t unsaved() const;

  // Another main host is to go on with this memory: what is here is given to the servers as well (write_back.hpp). In the place of a
  // checkpoint: begin_save(false) · save_round, again and again · [it stands still for good] keep_all · save_round until nothing is left · end_save(false)

  /// On the network's thread: which of these pages, which save_round gave, stay here for now. The others are on their way out, with a
  /// store of their own that an older content must not overtake; they count as unsaved again.
  std::vector<bool> staying(std::span<const PageNumber> pages);
  /// These count as unsaved again.
  void save_again(std::span<const PageNumber> pages);
  /// Nothing is brought in for later any more, and nothing leaves: the limit is off until the next set_local_limit. Returns when what was
  /// to leave was handed to the network's thread, or has left.
  void keep_all();
  /// The limit again, after keep_all(); but as long as the process stands still nothing leaves for it.
  void keep_all_no_more(std::uint64_t limit);
  /// Pages that are here.
  PageBits here() const;
  /// Joins the threads; nothing is called after it. The process must have ended, or stands still for ever.
  void stop();

  PagerFigures figures() const;
  std::uint64_t pages() const { return memory_.pages(); }

 private:
  void serve_faults();
  void serve_evictions();
  Status perform(Actions& actions);                 // table_mutex_ is held
  void note_written(std::span<const PageRun> runs);  // the same
  void note_use(PageNumber page, Instant now, Actions& actions);  // the same
  Status watch_piece();
  void watch_no_more();
  void fetch(std::vector<PageNumber> pages);
  Status place(const Piece& piece);
  Status evict(const Evict& evict);
  std::vector<bool> unchanged_since_cut(const Evict& evict) const;
  Status punch(const Punch& punch);
  Status unmap(std::span<const PageNumber> pages);
  void evict_again_later();
  Status note_written_pages();
  Status see_written_pages();
  SaveSink copies();
  Status read(std::span<const PageNumber> pages, std::byte* to) const;
  Status copy_rest(std::span<const PageNumber> pages);  // table_mutex_ is held
  void let_faults_pass() const;
  void let_punch();
  Result<Round> round_into(const SaveSink& sink, Hot hot);
  class RoundWatch;
  Status read_here(std::span<const PageNumber> pages, const SaveSink& sink);
  void prefetch_more(Actions& actions);              // table_mutex_ is held; the network's thread
  void prefetch_later(Instant when);                 // the same
  void prefetched(std::span<const PageNumber> pages, Instant now);  // table_mutex_ is held
  template <class Event>
  void tell_table(Event event);
  void give_up(const Error& why);

  GuestMemory& memory_;
  RemoteMemory& remote_;
  boost::asio::any_io_executor network_;
  Options options_;
  BlockPool blocks_;
  os::Fd stop_event_;
  boost::asio::steady_timer retry_;   // the network's thread
  nanoseconds retry_pause_{0};        // the same; 0: the last store succeeded
  boost::asio::steady_timer prefetch_timer_;  // the network's thread

  /// Held from before pages are put into place until the table knows of it: in between the process may have written them already. Taken
  /// before table_mutex_.
  mutable std::mutex placing_mutex_;
  /// Held from before the kernel forgets that pages were written, because it tells or because they go out of view, until it is noted: in
  /// between they would seem to be as they were last saved. Taken before table_mutex_.
  std::mutex noting_mutex_;
  mutable std::mutex table_mutex_;
  PageTable table_;                                       // guarded by table_mutex_
  std::unordered_map<PageNumber, Instant> waiting_since_; // guarded by table_mutex_
  std::vector<PageNumber> to_prefetch_;                   // guarded by table_mutex_
  std::size_t prefetched_ = 0;                            // guarded by table_mutex_: how many of them were asked for
  std::unordered_set<PageNumber> prefetching_;            // guarded by table_mutex_: those on their way
  Instant piece_begun_{}, next_piece_{};                  // guarded by table_mutex_
  BackgroundPace pace_;
  Histogram fault_times_;                                 // guarded by table_mutex_
  std::atomic<std::size_t> faults_in_hand_ = 0;           ///< for whoever takes table_mutex_ again and again
  bool gave_up_ = false;                                  // guarded by table_mutex_
  Writes writes_ = Writes::unnoticed;                     // guarded by table_mutex_
  PageBits changed_;                                      // guarded by table_mutex_; since the last kept cut
  PageBits changed_since_fix_;                            // guarded by table_mutex_
  std::optional<SaveProgress> save_;                      // guarded by table_mutex_
  bool fixed_ = false;                                    // guarded by table_mutex_
  std::optional<UseOrder> use_;                           // guarded by table_mutex_; since the last cut
  PageNumber watch_block_ = 1;                            // the same: how many pages come back at once
  PageBits watched_;                                      // guarded by table_mutex_: out of view only so that their use is seen, or used since
  bool fixing_ = false;                                   // guarded by table_mutex_: it is being decided what the cut has here; nothing is punched meanwhile
  std::optional<PageBits> rest_;                          // guarded by table_mutex_: of the cut, has yet to be copied
  std::condition_variable punches_allowed_;
  bool has_cut_ = false;                                  // changed by the owner's thread, with table_mutex_
  std::map<PageNumber, std::vector<std::byte>> last_;     // the newest that was copied; empty: zeros. The owner's thread; while rest_ is there guarded by table_mutex_

  mutable std::mutex jobs_mutex_;                         // may be taken while table_mutex_ is held
  std::condition_variable jobs_there_;
  std::condition_variable job_done_;
  std::deque<Action> jobs_;                               // guarded by jobs_mutex_
  std::uint64_t jobs_told_ = 0, jobs_done_ = 0;           // guarded by jobs_mutex_
  std::optional<PageNumber> watch_from_;                  // guarded by jobs_mutex_: what is before it was taken out of view already
  bool stopping_ = false;                                 // guarded by jobs_mutex_

  std::thread fault_thread_, evict_thread_;
};

}  // namespace yado::pager
