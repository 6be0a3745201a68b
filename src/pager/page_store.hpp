#pragma once
// What a memory server holds: pages of sessions, in memory of its own. Thread-safe. No sockets here.

#include <array>
#include <atomic>
#include <bitset>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "pager/protocol.hpp"

namespace yado::pager {

/// Slots of one page each, in chunks of 2 MiB that can be one huge page; a chunk that is empty goes back to the kernel.
class PageArena {
 public:
  explicit PageArena(std::uint64_t capacity_pages);
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;
  ~PageArena();

  /// Nothing when the capacity is used up or the kernel gives no memory.
  std::optional<std::uint32_t> allocate();
  void release(std::uint32_t slot);
  /// Valid while the slot is allocated.
  std::span<std::byte, page_bytes> at(std::uint32_t slot) const;
  std::uint64_t capacity_pages() const { return capacity_pages_; }

 private:
  static constexpr std::uint32_t slots_per_chunk = 512;
  struct Chunk {
    std::byte* memory = nullptr;
    std::vector<std::uint16_t> free;  ///< newest last: what was used last is likeliest in a cache
  };
  std::uint64_t capacity_pages_;
  std::mutex mutex_;
  std::vector<Chunk> chunks_;  ///< all made at the start, so that at() needs no lock; `free` is guarded by mutex_
  std::set<std::uint32_t> with_room_;  ///< guarded by mutex_; the lowest is filled first, so that high ones get empty
  std::uint64_t used_ = 0;             ///< guarded by mutex_
};

/// Where SAVE puts pages. One writer at a time.
class PageSink {
 public:
  virtual ~PageSink() = default;
  virtual Status add(PageNumber page, PageData data) = 0;
  virtual Status add_zero(PageNumber page) = 0;
  /// All of it is there: make it durable. Without it, nothing was saved.
  virtual Status finish() = 0;
};

/// Where LOAD takes pages from.
class PageSource {
 public:
  virtual ~PageSource() = default;
  struct Page {
    PageNumber number = 0;
    Bytes data;  ///< a page, valid until the next call; empty: all zero
  };
  /// Nothing: that was all.
  virtual Result<std::optional<Page>> next() = 0;
};

/// What SAVE and LOAD name. Called from several threads.
class PageArchive {
 public:
  virtual ~PageArchive() = default;
  virtual Result<std::unique_ptr<PageSink>> create(const std::string& session, const std::string& name,
                                                   bool changed_only) = 0;
  virtual Result<std::unique_ptr<PageSource>> open(const std::string& session, const std::string& name) = 0;
};

/// The pages of one workload. Writers (put, drop, load) exclude each other; save and get run beside them, a page at a time.
class PageStore {
 public:
  PageStore(PageArena& arena, std::uint64_t pages, std::uint64_t quota_pages);
  ~PageStore();

  /// An owner's right to write, given by HELLO. Greater ones put an end to smaller ones. Error stale_epoch.
  struct Owner {
    std::uint64_t epoch = 0, generation = 0;
    auto operator<=>(const Owner&) const = default;
  };
  Status take_over(const Owner& owner);

  /// All of the batch or nothing. Errors: stale_epoch, invalid_argument (a page outside), no_space.
  Status put(const Owner& owner, const Batch& batch);
  /// What there is of these pages: the runs of the answer and, copied to the beginning of `space`, their content.
  struct Found {
    std::vector<KindRun> runs;
    Bytes data;
  };
  Result<Found> get(const Owner& owner, const Batch& wanted, std::span<std::byte> space);
  Status drop(const Owner& owner, const Batch& pages);
  std::vector<KindRun> list(PageNumber from) const;
  /// Pages that are put meanwhile are saved as they were or as they become, never torn. Returns how many. After an error
  /// nothing counts as saved.
  Result<std::uint64_t> save(PageSink& sink, bool changed_only);
  Result<std::uint64_t> load(const Owner& owner, PageSource& source);

  SessionStats stats() const;
  std::uint64_t pages() const { return pages_; }
  std::uint64_t quota_pages() const { return quota_pages_; }

 private:
  static constexpr std::uint32_t absent = ~std::uint32_t{0};
  static constexpr std::uint32_t zero = absent - 1;
  static constexpr std::size_t leaf_pages = 4096;
  struct Leaf {
    std::array<std::uint32_t, leaf_pages> slots;
    std::bitset<leaf_pages> changed;
    Leaf() { slots.fill(absent); }
  };
  /// A leaf is guarded by the mutex of its shard.
  struct Shard {
    std::mutex mutex;
  };
  static constexpr std::size_t shards = 64;

  Status check(const Owner& owner) const;
  Status check_inside(const std::vector<KindRun>& runs) const;
  std::uint32_t slot(PageNumber page) const;
  void set(PageNumber page, std::uint32_t slot);
  void write(PageNumber page, Bytes data, std::vector<std::uint32_t>& fresh);
  std::mutex& mutex_of(PageNumber page) const { return shards_[page / leaf_pages % shards].mutex; }

  PageArena& arena_;
  const std::uint64_t pages_, quota_pages_;
  mutable std::array<Shard, shards> shards_;
  std::vector<std::unique_ptr<Leaf>> leaves_;
  mutable std::mutex writer_;  ///< guards owner_; held by put, drop, load
  Owner owner_;
  std::atomic<std::uint64_t> data_pages_ = 0, zero_pages_ = 0, puts_ = 0, gets_ = 0;
};

}  // namespace yado::pager
