#pragma once
// The pages that are not here: on which servers, in how many copies, and what happens when one of those dies. One thread;
// no sockets (page_server.hpp).
//
// RemoteMemory is the interface that a pager sees; what redundancy there is stays behind it (Parity: parity.hpp). Copies is the policies
// `none` (one copy) and `replica` (two): a page is stored when all its servers have acknowledged it; a server that dies is replaced
// by the others, and what it held is copied again in the background.
//
// A page that was fetched keeps its copies, so that evicting it unchanged costs nothing. They are the first to go when a
// server's quota gets short: what must be remote always finds room that is taken by what need not be.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "pager/page_server.hpp"
#include "pager/page_bits.hpp"

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
  /// By page, or empty: its content is that of the last cut that was kept (not of one under way, which may yet be
  /// abandoned), so that a server which has to be sent it need not save it again.
  std::vector<bool> unchanged;
  /// The server that is to have them, as far as it has room; none: wherever they belong.
  std::optional<std::size_t> to;
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
  /// These pages are in the memory file, and nobody is about to punch them out, although their store succeeded (somebody
  /// touched them meanwhile): their copies may go when room is short. Without it they take room until the next store.
  virtual void kept(std::span<const PageNumber> /*pages*/) {}
  /// Nobody has the page: its content is lost, unless it is in the memory file.
  virtual bool lost(PageNumber page) const = 0;
  /// Of the pages that are not in the memory file (`here`) every one can be had. Error unavailable: how many cannot. Looks at every page.
  Status none_lost(const PageBits& here) const;
  /// Pages whose only content would be remote, but which have too few copies.
  virtual std::uint64_t pages_without_redundancy() const = 0;

  // ---- its servers, by their numbers ----
  /// At the start: this server has these pages (as it said in LIST).
  virtual void adopt(std::span<const KindRun> runs, std::size_t server) = 0;
  /// Nothing is lost if this server dies now. Looks at every page.
  virtual bool can_do_without(std::size_t server) const = 0;
  /// A server died: called before its requests under way are answered.
  virtual void server_died(std::size_t server) = 0;
  /// A further one, while the others serve, in the place of one that is dead, if there is any: its number. It must outlive this. `parity`: its
  /// second session, where that is wanted (parity.hpp). Errors: no_space (too many live).
  virtual Result<std::size_t> add_server(PageServer* server, PageServer* parity = nullptr) = 0;
  /// Pages with data that this server keeps for us, duplicates and parity included.
  virtual std::uint64_t pages_at(std::size_t server) const = 0;
  /// Called once when no restoring of redundancy in the background is left to do, perhaps at once; what finds no room is not waited for.
  virtual void when_rebuilt(std::function<void()> then) = 0;

  // ---- another main host is to go on with it (write_back.hpp) ----
  /// Copies in an image on this host's disk count no more (`false`: again), because this memory is to be had from elsewhere: what is
  /// nowhere else goes to servers in the background.
  virtual void leave_images(bool leave) = 0;
  /// No server has it as it is: an image on this host's disk has, or it is computed, or nobody.
  virtual bool is_on_no_server(PageNumber page) const = 0;
  /// Called once when no store waits any more, perhaps at once: all that it takes was asked of the servers.
  virtual void when_sent(std::function<void()> then) { then(); }

  // ---- a checkpoint ----
  /// It begins: remote copies of pages that are in the memory file would be saved, too.
  virtual void drop_duplicates() = 0;
  /// Its cut, as the servers see it: a page that was in the memory file then (`here`), and becomes again what a server had before, has changed
  /// there. One that has come since is its server's at the cut.
  virtual void at_cut(const PageBits& here) = 0;
  /// The server that answers for a page in an image; none: is_zero(), or nobody has it as it is.
  virtual std::optional<std::size_t> owner(PageNumber page) const = 0;
  virtual bool is_zero(PageNumber page) const = 0;
  /// Nobody has it as it is, and it is to be computed from what others have (parity.hpp): whether they have it is seen when it is read.
  virtual bool is_computed(PageNumber /*page*/) const { return false; }
  /// At the cut: what these pages, which are computed, contain now belongs into the image, whatever is stored from here on.
  virtual void hold_for_image(const std::vector<PageNumber>& /*pages*/) {}
  /// Some of them, in any order, none of them null; an empty piece: that were all. One call at a time, answered once. Error unavailable: a page is lost.
  virtual void read_held(Arrived read) { read(Piece{}); }
  /// The others are not wanted any more; a call under way gets `canceled`.
  virtual void release_held() {}

  struct Traffic {
    std::uint64_t pages_sent = 0;     ///< in all copies, parity included
    std::uint64_t pages_clean = 0;    ///< evicted without being sent
    std::uint64_t pages_zero = 0;     ///< evicted as zero
    std::uint64_t pages_rebuilt = 0;
  };
  virtual Traffic traffic() const = 0;
};

class Copies : public RemoteMemory {
 public:
  struct Options {
    std::uint64_t pages = 0;
    unsigned copies = 1;     ///< 1 or 2
    std::uint64_t seed = 0;  ///< of the sums
  };
  static constexpr std::size_t most_servers = 16;
  /// At first every page is zero, and nobody has it. At most most_servers; they must outlive this.
  Copies(const Options& options, std::vector<PageServer*> servers);

  void adopt(std::span<const KindRun> runs, std::size_t server) override;
  bool can_do_without(std::size_t server) const override;
  void server_died(std::size_t server) override;
  Result<std::size_t> add_server(PageServer* server, PageServer* parity = nullptr) override;
  std::uint64_t pages() const { return entries_.size(); }
  PageServer& server(std::size_t number) const { return *servers_[number]; }
  /// What it may hold from now on, below its quota: nothing is sent there that would exceed it. 0: it is to be emptied (drain.hpp).
  void set_limit(std::size_t server, std::uint64_t pages);
  /// Called whenever a page may have come to rest: a store, a copy or a move has ended, or something was fetched.
  void on_settled(std::function<void()> action) { settled_ = std::move(action); }

  using Servers = std::uint16_t;  ///< a bit per server
  static constexpr Servers all_servers = 0xffff;

  // ---- a move from server to server (copies_moves.cpp) ----
  /// Of the pages from `from` on those that this server has, or may have; ascending, at most `most`.
  std::vector<PageNumber> pages_on(std::size_t server, PageNumber from, std::size_t most) const;
  /// Before MOVE is asked of server `from`: room is taken on `to`. end_move(), once it is answered, makes `to` the holder
  /// of those pages that nobody stored meanwhile, and drops them on `from`. A GET in between is served as before.
  struct Moving {
    std::vector<PageNumber> pages;         ///< ascending
    std::vector<std::uint32_t> versions;
    std::size_t from = 0, to = 0;
  };
  /// What to do with pages that `from` shall not keep. Copies of pages that are in the memory file are dropped at once.
  struct Moves {
    std::vector<Moving> moves;        ///< by target
    std::vector<PageNumber> busy;     ///< a store or a copy of it is under way
    std::vector<PageNumber> nowhere;  ///< nobody else has room
  };
  Moves begin_moves(std::span<const PageNumber> pages, std::size_t from, Servers avoided);
  void end_move(const Moving& moving, bool moved);

  void fetch(std::vector<PageNumber> pages, Arrived arrived) override;
  void store(Evicted evicted, Stored stored) override;
  std::optional<std::size_t> owner(PageNumber page) const override;
  bool is_zero(PageNumber page) const override { return entries_[page].zero; }
  void kept(std::span<const PageNumber> pages) override;
  void leave_images(bool leave) override;
  /// What servers had from the beginning is held once: copies of it are made in the background.
  void make_redundant();
  void when_rebuilt(std::function<void()> then) override;
  bool is_on_no_server(PageNumber page) const override { return !entries_[page].zero && entries_[page].storing == 0 && (entries_[page].holders & writable()) == 0; }
  void drop_duplicates() override { drop_duplicates_of(nullptr); }
  void at_cut(const PageBits& here) override { drop_duplicates_of(&here); }
  bool lost(PageNumber page) const override {
    const Entry& entry = entries_[page];
    return !entry.zero && entry.holders == 0 && entry.storing == 0;
  }
  std::uint64_t pages_without_redundancy() const override;

  struct Counts {
    std::uint64_t pages_sent = 0;       ///< in all copies
    std::uint64_t pages_clean = 0;      ///< evicted without being sent
    std::uint64_t pages_zero = 0;       ///< evicted as zero
    std::uint64_t pages_rebuilt = 0;
    std::uint64_t duplicates_dropped = 0;  ///< pages in the memory file whose copies made room
    std::uint64_t wrong_contents = 0;   ///< a server gave something else than it was given
  };
  const Counts& counts() const { return counts_; }
  std::uint64_t seed() const { return options_.seed; }
  Traffic traffic() const override { return {counts_.pages_sent, counts_.pages_clean, counts_.pages_zero, counts_.pages_rebuilt}; }
  bool rebuilding() const { return !to_rebuild_.empty() || rebuilds_under_way_ > 0; }
  std::uint64_t pages_at(std::size_t server) const override { return room_[server].used; }

 private:
  struct Entry {
    std::uint64_t sum = 0;
    std::uint32_t version = 0;     ///< grows when copies become void: what is under way for an older one is, too
    Servers holders = 0;           ///< have the newest content
    Servers occupied = 0;          ///< may have something, old or new: it takes room there
    std::uint16_t storing = 0;     ///< stores under way
    bool zero : 1 = true;
    bool sum_known : 1 = false;
    bool resident : 1 = false;     ///< in the memory file, and no store of it is under way: the copies are duplicates
  };
  struct Room {
    std::uint64_t used = 0;        ///< entries that occupy it
    std::uint64_t duplicates = 0;  ///< of these, resident
    std::uint64_t limit = ~std::uint64_t{0};  ///< below the server's quota
  };
  struct Fetching;
  struct Storing;
  struct Group;
  using Groups = std::map<std::pair<Servers, bool>, std::shared_ptr<Group>>;  ///< by target, and whether unchanged

  // copies.cpp
  Servers alive() const;
  Servers writable() const;
  void fetch_from_servers(const std::shared_ptr<Fetching>& fetching, const std::vector<PageNumber>& pages);
  std::size_t best_holder(PageNumber page) const;
  void got(const std::shared_ptr<Fetching>& fetching, std::size_t server, const std::vector<PageNumber>& pages,
           Result<std::pair<Batch, Frame>> answer);
  void refused(const std::shared_ptr<Fetching>& fetching, std::size_t server, const std::vector<PageNumber>& pages,
               const Error& error);
  bool right(PageNumber page, const std::byte* content);
  bool clean(const Entry& entry, bool zero, std::uint64_t sum) const;
  void plan(const std::shared_ptr<Storing>& storing, std::size_t which, Servers tried, Servers has, Groups& groups);
  void send_groups(const std::shared_ptr<Storing>& storing, Groups& groups);
  void send_group(const std::shared_ptr<Storing>& storing, Servers to, bool unchanged, const std::shared_ptr<Group>& group);
  void group_answered(const std::shared_ptr<Storing>& storing, const std::shared_ptr<Group>& group, std::size_t server,
                      const Status& status);
  void settle(const std::shared_ptr<Storing>& storing, std::size_t which, Servers has);
  void finished(const std::shared_ptr<Storing>& storing);

  // copies_room.cpp
  std::uint64_t quota(std::size_t server) const;
  Servers targets(PageNumber page, unsigned count, Servers among) const;
  Servers occupy(PageNumber page, unsigned count, Servers among, std::optional<std::size_t> first = std::nullopt);
  void set_occupied(Entry& entry, Servers servers);
  void set_resident(Entry& entry, bool resident);
  void make_room(std::size_t server);
  void drop_duplicates_of(const PageBits* pages);
  void forget_copies(PageNumber page, std::map<Servers, std::vector<PageNumber>>& drops);
  void drop(Servers from, std::vector<PageNumber> pages);

  // copies_rebuild.cpp
  bool short_of_copies(const Entry& entry) const;
  void rebuild_later(PageNumber page);
  void rebuild_some();
  void rebuild_waiting();
  void rebuild_region(PageNumber region);
  void rebuild(std::vector<PageNumber> pages, std::size_t from);
  void copy_on(const std::vector<std::uint32_t>& versions, const Batch& batch, const Frame& frame, std::size_t from);

  Options options_;
  std::vector<PageServer*> servers_;
  std::vector<Room> room_;                 ///< by server
  std::vector<Entry> entries_;
  PageNumber hand_ = 0;                    ///< where make_room() looks next
  std::set<PageNumber> to_rebuild_;        ///< regions, by their first page
  std::set<PageNumber> waiting_for_room_;  ///< regions whose new copies nobody had room for
  unsigned rebuilds_under_way_ = 0;
  std::function<void()> settled_;
  std::vector<std::function<void()>> rebuilt_;
  bool images_count_ = true;
  Counts counts_;
};

}  // namespace yado::pager
