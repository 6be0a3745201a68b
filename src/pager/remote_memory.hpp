#pragma once
// The pages that are not here: on which servers, in how many copies, and what happens when one of those dies. One thread;
// no sockets (page_server.hpp).
//
// RemoteMemory is the interface that a pager sees; what redundancy there is stays behind it. Copies is the policies `none` (one copy) and `replica`
// (two): a page is stored when all its servers have acknowledged it; a server that dies is
// replaced by the others, and what it held is copied again in the background.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "pager/page_server.hpp"

namespace yado::pager {

/// Some of the pages that were asked for. `contents[i]`: page `pages[i]`, null for a zero page; kept alive by `hold`.
struct Piece {
  std::vector<PageNumber> pages;
  std::vector<const std::byte*> contents;
  std::shared_ptr<const void> hold;
};

/// What an eviction read, contents as in Piece, with the sum of every page.
struct Evicted {
  Piece piece;
  std::vector<std::uint64_t> sums;
};

class RemoteMemory {
 public:
  virtual ~RemoteMemory() = default;
  /// `pages` ascending, at most most_data_pages. `arrived` is called for one piece after the other until all are there, or once with an error:
  /// these pages cannot be had any more. Possibly from inside the call (zero pages).
  using Arrived = std::function<void(Result<Piece>)>;
  virtual void fetch(std::vector<PageNumber> pages, Arrived arrived) = 0;
  /// Makes the remote copies of these pages this content. Pages whose copies have it already are not sent. Errors:
  /// no_space, unavailable; the old copies may be gone then.
  using Stored = std::function<void(Status)>;
  virtual void store(Evicted evicted, Stored stored) = 0;
  /// Nobody has the page: its content is lost, unless it is in the memory file.
  virtual bool lost(PageNumber page) const = 0;
  /// The server that answers for a page in an image; none: it is zero, or nobody has it.
  virtual std::optional<std::size_t> owner(PageNumber page) const = 0;
  /// Pages whose only content would be remote, but which have too few copies.
  virtual std::uint64_t pages_without_redundancy() const = 0;
};

class Copies : public RemoteMemory {
 public:
  struct Options {
    std::uint64_t pages = 0;
    unsigned copies = 1;     ///< 1 or 2
    std::uint64_t seed = 0;  ///< of the sums
  };
  /// At first every page is zero, and nobody has it. The servers must outlive this.
  Copies(const Options& options, std::vector<PageServer*> servers);

  /// At the start: this server has these pages (as it said in LIST).
  void adopt(std::span<const KindRun> runs, std::size_t server);
  /// A server died: called before its requests under way are answered.
  void server_died(std::size_t server);

  void fetch(std::vector<PageNumber> pages, Arrived arrived) override;
  void store(Evicted evicted, Stored stored) override;
  bool lost(PageNumber page) const override { return !entries_[page].zero && entries_[page].holders == 0 && entries_[page].storing == 0; }
  std::optional<std::size_t> owner(PageNumber page) const override;
  std::uint64_t pages_without_redundancy() const override;

  struct Counts {
    std::uint64_t pages_sent = 0;       ///< in all copies
    std::uint64_t pages_clean = 0;      ///< evicted without being sent
    std::uint64_t pages_zero = 0;       ///< evicted as zero
    std::uint64_t pages_rebuilt = 0;
    std::uint64_t wrong_contents = 0;   ///< a server gave something else than it was given
  };
  const Counts& counts() const { return counts_; }
  /// Pages whose newest content this server has.
  std::uint64_t held_by(std::size_t server) const;
  std::uint64_t seed() const { return options_.seed; }
  bool rebuilding() const { return !to_rebuild_.empty() || rebuilds_under_way_ > 0; }

 private:
  using Servers = std::uint16_t;  ///< a bit per server
  struct Entry {
    std::uint64_t sum = 0;
    std::uint32_t version = 0;     ///< grows with every store: what is under way for an older one is void
    Servers holders = 0;           ///< have the newest content
    std::uint8_t storing = 0;      ///< stores under way
    bool zero : 1 = true;
    bool sum_known : 1 = false;
  };
  struct Fetching;
  struct Storing;
  struct Group;

  Servers alive() const;
  /// Where a page belongs now: `copies` of those alive, the same ones for the pages of a region.
  Servers targets(PageNumber page, Servers among) const;
  void fetch_from_servers(const std::shared_ptr<Fetching>& fetching, std::vector<PageNumber> pages);
  void got(const std::shared_ptr<Fetching>& fetching, std::size_t server, std::vector<PageNumber> pages,
           Result<std::pair<Batch, Frame>> answer);
  bool right(PageNumber page, const std::byte* content, bool is_zero);
  void send_group(const std::shared_ptr<Storing>& storing, const std::shared_ptr<Group>& group, Servers to);
  void group_answered(const std::shared_ptr<Storing>& storing, const std::shared_ptr<Group>& group, std::size_t server,
                      const Status& status);
  void drop(Servers from, std::vector<PageNumber> pages);
  void rebuild_some();
  void rebuild(std::vector<PageNumber> pages, Servers from, Servers to);

  Options options_;
  std::vector<PageServer*> servers_;
  std::vector<Entry> entries_;
  std::deque<PageNumber> to_rebuild_;  ///< regions, by their first page
  unsigned rebuilds_under_way_ = 0;
  Counts counts_;
};

}  // namespace yado::pager
