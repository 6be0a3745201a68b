#pragma once
// What a memory server holds of one workload. Thread-safe. No sockets here.
//
// A page is absent, zero, in memory, or (after LOAD) still only on the disk. Beside its place a page has four bits, so that
// a cut can be saved while pages come and go:
//
//   changed        put since the last cut that was kept
//   pending        has to be written for the cut under way; after fix() whoever overwrites such a page sets it aside first
//   put            since the cut under way began
//   changed_after  put since fix(): changed, once that cut is kept

#include <array>
#include <atomic>
#include <bitset>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "image/page_chain.hpp"
#include "pager/page_arena.hpp"
#include "pager/protocol.hpp"

namespace yado::pager {

/// Writers (put, drop, load, fetch_from_disk) exclude each other; everything else runs beside them, a page at a time.
class PageStore {
 public:
  PageStore(PageArena& arena, std::uint64_t pages, std::uint64_t quota_pages);
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;
  ~PageStore();

  /// An owner's right to write, given by HELLO. Greater ones put an end to smaller ones. Error stale_epoch.
  struct Owner {
    std::uint64_t epoch = 0, generation = 0;
    auto operator<=>(const Owner&) const = default;
  };
  /// The one before. `from`: only from an owner of that epoch (or from an earlier connection of the same life, whose answer was lost).
  Result<Owner> take_over(const Owner& owner, std::optional<std::uint64_t> from = std::nullopt);
  Owner owner() const;
  /// Gives all pages back at once, however long somebody still knows this store. Owners get stale_epoch from now on.
  void close();

  /// All of the batch or nothing. Errors: stale_epoch, invalid_argument (a page outside), no_space.
  /// `unchanged`: since the last cut that was kept.
  Status put(const Owner& owner, const Batch& batch, bool unchanged = false);
  /// For a mover, told by the owner of that epoch: the same, but pages that are held stay as they are.
  Status add(std::uint64_t epoch, const Batch& batch);
  /// What there is of these pages: the runs of the answer and, copied to the beginning of `space`, their content. Reads
  /// from the disk what is only there; errors as of PagePart::read.
  struct Found {
    std::vector<KindRun> runs;
    Bytes data;
    std::size_t from_disk = 0;  ///< pages
  };
  Result<Found> get(const Owner& owner, const Batch& wanted, std::span<std::byte> space) const;
  Status drop(const Owner& owner, const Batch& pages);
  std::vector<KindRun> list(PageNumber from) const;

  // ---- a cut, from begin_cut to end_cut ----
  enum class Scope { changed, all };
  /// What is held, or what changed of it, becomes pending; from now on also what is put.
  void begin_cut(Scope scope);
  /// The instant of the cut.
  void fix();
  struct Pending {
    PageNumber page = 0;
    PageKind kind = PageKind::data;  ///< data or zero
  };
  /// The next page from `from` on that is pending, no longer so; its content goes to `space`. After fix() the content of
  /// that instant.
  /// `settled`: none that was put since the cut began, because it may be put again before fix().
  enum class Which { all, settled };
  Result<std::optional<Pending>> take_pending(PageNumber from, std::span<std::byte, page_bytes> space, Which which = Which::all);
  /// The content of a page that was set aside, if any is: these have to be written, too.
  Result<std::optional<Pending>> take_aside(std::span<std::byte, page_bytes> space);
  /// `kept`: the changed pages are now those that were put since fix(). Otherwise they stay what they were.
  void end_cut(bool kept);
  /// True when so much is set aside that writers should wait; then `wake` is called once when they need not any more.
  bool is_full_aside(std::function<void()> wake);
  /// Pages that may be set aside.
  std::uint64_t most_aside() const;
  std::uint64_t pending_pages() const;

  /// These pages of the chain are held from now on, but for those that are held already: on the disk only, unchanged.
  /// Returns how many are. Errors: stale_epoch, invalid_argument, no_space, conflict (another chain is being loaded),
  /// unavailable (a record lies in a log that is not here).
  Result<std::uint64_t> load(const Owner& owner, std::shared_ptr<const image::PageChain> chain, const std::vector<KindRun>& wanted);
  /// The quota that this takes, beside what is held.
  Result<std::uint64_t> quota_to_load(const image::PageChain& chain, const std::vector<KindRun>& wanted) const;
  /// Brings a page into memory if it is only on the disk. `content` is what `chain` has.
  void fetch_from_disk(const image::PageChain& chain, PageNumber page, PageData content);
  bool is_on_disk(PageNumber page) const;
  /// What the pages on the disk are read from.
  std::shared_ptr<const image::PageChain> chain() const;

  SessionStats stats() const;
  std::uint64_t pages() const { return pages_; }
  std::uint64_t quota_pages() const { return quota_pages_; }
  /// Errors: stale_epoch, no_space (more is held).
  Status set_quota(const Owner& owner, std::uint64_t pages);

 private:
  struct Missing {
    std::vector<KindRun> runs;
    std::uint64_t with_data = 0, there = 0;
  };
  Result<Missing> missing_of(const image::PageChain& chain, const std::vector<KindRun>& wanted) const;  // writer_ is held
  using Slot = std::uint32_t;
  static constexpr Slot absent = ~Slot{0}, zero = absent - 1, on_disk = absent - 2;
  static constexpr bool in_memory(Slot slot) { return slot < on_disk; }
  static constexpr std::size_t leaf_pages = 4096;
  struct Leaf {
    std::array<Slot, leaf_pages> slots;
    std::bitset<leaf_pages> changed, pending, put, changed_after;
    Leaf() { slots.fill(absent); }
  };
  static constexpr std::size_t shards = 64;
  enum class Cut { none, open, fixed };
  struct Aside {
    std::unique_ptr<std::array<std::byte, page_bytes>> content;  ///< none: as `chain` has it, or zero
    std::shared_ptr<const image::PageChain> chain;
  };

  Status check(const Owner& owner) const;
  Status check_inside(const std::vector<KindRun>& runs) const;
  Slot slot(PageNumber page) const;
  void set(PageNumber page, Slot slot);
  void mark(PageNumber page, bool unchanged);
  void set_aside(PageNumber page);
  void forget_aside();
  Status store(const Batch& batch, bool only_absent, bool unchanged);
  Result<std::vector<Slot>> allocate(std::uint64_t slots);
  void write(PageNumber page, Bytes data, bool unchanged, std::vector<Slot>& fresh);
  template <class Work>
  void each_leaf(Work work);
  std::mutex& mutex_of(PageNumber page) const { return shards_[page / leaf_pages % shards]; }

  PageArena& arena_;
  const std::uint64_t pages_;
  std::atomic<std::uint64_t> quota_pages_;  ///< changed with writer_
  mutable std::array<std::mutex, shards> shards_;  ///< a leaf is guarded by the mutex of its shard
  std::vector<std::unique_ptr<Leaf>> leaves_;
  mutable std::mutex writer_;       ///< held by writers, for long; before any other
  mutable std::mutex owner_mutex_;  ///< for a moment
  bool closed_ = false;             // guarded by writer_
  Owner owner_;                     // changed with writer_ and owner_mutex_, read with either
  Cut cut_ = Cut::none;             // guarded by writer_
  Scope scope_ = Scope::all;        // guarded by writer_
  std::atomic<std::uint64_t> taken_ = 0;  ///< pages that were to be written for the cut under way, so far
  mutable std::mutex aside_mutex_;
  std::unordered_map<PageNumber, Aside> aside_;      // guarded by aside_mutex_
  std::vector<std::function<void()>> waiting_aside_; // guarded by aside_mutex_
  mutable std::mutex chain_mutex_;
  std::shared_ptr<const image::PageChain> chain_;    // guarded by chain_mutex_
  std::atomic<std::uint64_t> data_pages_ = 0, zero_pages_ = 0, disk_pages_ = 0, puts_ = 0;
  mutable std::atomic<std::uint64_t> gets_ = 0;
};

}  // namespace yado::pager
