#pragma once
// Pages on other hosts with one XOR over `data` of them instead of a second copy. One thread; no sockets.
//
//        host 0        host 1        host 2            group 0: two columns and their parity
//     ┌───────────┐ ┌───────────┐ ┌───────────┐
//     │ column 0  │ │ column 1  │ │  parity   │        a column: region_pages neighbours of the guest's memory
//     │  0…511    │ │ 512…1023  │ │ of both   │        a stripe: one page of each column, and their XOR
//     └───────────┘ └───────────┘ └───────────┘        group 1 begins one host further, and so on
//
// A page that changes costs two reads and two writes (its old content and the parity come here, the new ones go there); a replica costs
// two writes, but twice the memory instead of 1 + 1/data. Whatever touches a stripe is a transaction of its group, one after the other, so
// that no reader sees a page without its parity. Everything written can be repeated. Every content, parity too, is compared with its sum.
//
// After a death, a host that the group does not use takes the place, and what is missing is computed there. Without one the group goes on: a page
// whose host is dead is kept as what the parity says. Where a living one is to leave, the other one gets a copy first (parity_leaving.cpp).
//
// A restored memory begins outside of all stripes: what lies in an image on this host's disk stays there until it changes, and dies with this host
// only, and goes to servers when this memory moves to another main host; what servers have loaded is taken into stripes in the background (parity_outside.cpp). No image contains parity: a page that only the
// parity has is computed for it, as it was at the cut (parity_image.cpp).

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "pager/remote_memory.hpp"

namespace yado::pager {

class Parity : public RemoteMemory {
 public:
  struct Options {
    std::uint64_t pages = 0;
    unsigned data = 2;       ///< columns of a group
    std::uint64_t seed = 0;  ///< of the sums
    std::size_t most_held = 16384;  ///< pages in memory for an image, before stores of such pages wait for whoever reads them: 64 MiB
  };
  /// A host is two sessions of its memory server: one for pages, one for parity, whose pages are stripes. No `parity`: an image on this host's
  /// disk, which only gives.
  struct Host {
    PageServer* pages;
    PageServer* parity;
  };
  static constexpr std::size_t most_hosts = 16;
  /// Columns for so many hosts, of which one may be spare.
  static unsigned columns_for(std::size_t hosts) { return hosts <= 4 ? 2 : static_cast<unsigned>(hosts - 2); }
  /// How many pages a session for parity must have.
  static std::uint64_t stripes(std::uint64_t pages, unsigned data);

  /// More hosts than columns. At first every page is zero. The servers must outlive this.
  Parity(const Options& options, std::vector<Host> hosts);

  bool can_do_without(std::size_t host) const override;
  /// One of its two sessions is dead, or both. Again: nothing.
  void server_died(std::size_t host) override;
  Result<std::size_t> add_server(PageServer* pages, PageServer* parity) override;
  void adopt(std::span<const KindRun> runs, std::size_t host) override;
  /// Everything was adopted: what servers have loaded gets its parity.
  void take_in_loaded();
  void when_rebuilt(std::function<void()> then) override;
  /// Every group has all its hosts: where there is nothing to repair, every page is on one.
  bool all_hosts_live() const;

  /// A living host is to keep nothing any more: group by group another one takes its place, and has all of it before this one gives it up. `done`,
  /// once: nothing is on it, or it died; no_space: some of it has no place elsewhere, and stays.
  void leave(std::size_t host, std::function<void(Status)> done);
  /// It stays after all, with what it still has. `done` is not called any more.
  void stay(std::size_t host);
  /// Without so many no group has a host for each of its columns.
  unsigned least_hosts() const { return options_.data + 1; }

  void leave_images(bool leave) override;
  bool is_on_no_server(PageNumber page) const override;
  void when_sent(std::function<void()> then) override;

  void drop_duplicates() override {}  // would have to leave their stripes: more than is won
  void at_cut(const PageBits& here) override;
  std::optional<std::size_t> owner(PageNumber page) const override;
  bool is_zero(PageNumber page) const override { return pages_[page].zero; }
  bool is_computed(PageNumber page) const override;
  void hold_for_image(const std::vector<PageNumber>& pages) override;
  void read_held(Arrived read) override;
  void release_held() override;

  void fetch(std::vector<PageNumber> pages, Arrived arrived) override;
  void store(Evicted evicted, Stored stored) override;
  void kept(std::span<const PageNumber> pages) override;
  bool lost(PageNumber page) const override;
  std::uint64_t pages_without_redundancy() const override;

  struct Counts {
    std::uint64_t pages_sent = 0, pages_read = 0;  ///< to change pages, parity included
    std::uint64_t pages_clean = 0, pages_zero = 0;
    std::uint64_t pages_reconstructed = 0;
    std::uint64_t duplicates_dropped = 0;
    std::uint64_t wrong_contents = 0;
  };
  const Counts& counts() const { return counts_; }
  Traffic traffic() const override { return {counts_.pages_sent, counts_.pages_clean, counts_.pages_zero, counts_.pages_reconstructed}; }
  bool repairing() const { return repairs_ > 0 || taking_in_; }
  /// With its XORs. Looks at every stripe.
  std::uint64_t pages_at(std::size_t host) const override;

 private:
  static constexpr std::uint8_t nowhere = 255;
  struct Page {
    std::uint64_t sum = 0;        ///< of what it is, when it is known
    std::uint16_t storing = 0;    ///< stores under way
    std::uint8_t outside = nowhere;  ///< the host that has it, in no stripe
    bool sum_known : 1 = false;   ///< always, of a page in a stripe
    bool resend : 1 = false;      ///< what its host has counts as older than the last cut
    bool zero : 1 = true;
    bool in_stripe : 1 = false;   ///< the parity counts it in; not so zero pages, nor those whose only content is here
    bool present : 1 = false;     ///< its host has it
    bool counted : 1 = false;     ///< takes room on its host, or is about to
    bool resident : 1 = false;    ///< in the memory file, and no store of it is under way
  };
  struct Stripe {
    std::uint64_t sum = 0;
    bool zero : 1 = true;         ///< the XOR is zero, so nobody keeps it
    bool valid : 1 = true;        ///< its host has the XOR of all pages in it
  };
  using Done = std::function<void()>;
  using Transaction = std::function<void(Done done)>;
  struct Group {
    std::vector<std::size_t> hosts;  ///< by column; the last is the parity's
    std::deque<Transaction> waiting;
    bool busy = false, repairing = false;
  };
  /// A page of a group, or (column == data) the parity of a stripe.
  struct Cell {
    unsigned column = 0;
    std::uint32_t offset = 0;
    auto operator<=>(const Cell&) const = default;
  };
  using Cells = std::set<Cell>;
  struct Contents {
    std::map<Cell, const std::byte*> of;
    std::vector<std::shared_ptr<const void>> holds;
  };
  using Then = std::function<void(Contents)>;
  /// New contents of some pages of a group, and of the parity that goes with them. No content: the page leaves its stripe.
  struct Change {
    struct Item {
      const std::byte* content = nullptr;
      std::uint64_t sum = 0;
    };
    std::size_t group = 0;
    std::map<Cell, Item> items;
    std::shared_ptr<const void> hold;
    Done done;

    enum class Way { delta, from_others, none };
    std::map<std::uint32_t, Way> ways;  ///< by offset: how its parity is had
    Contents read;

    Cells cells_at(std::uint32_t offset) const {
      Cells cells;
      for (const auto& [cell, item] : items)
        if (cell.offset == offset) cells.insert(cell);
      return cells;
    }
  };
  /// What an image under way needs of pages that are computed.
  struct Held {
    PageBits wanted;  ///< their content of the cut is still in their stripes
    std::map<PageNumber, std::unique_ptr<std::array<std::byte, page_bytes>>> aside;  ///< it was read
    Arrived reader;
    std::optional<Error> failed;
    bool reading = false;
    PageNumber from = 0;           ///< of wanted pages before it those that are left are being read
    std::vector<Done> waiting;     ///< changes, for room
  };
  struct Leaving {
    std::function<void(Status)> done;
    std::size_t next = 0;  ///< groups before it do not use that host, or cannot do without
    std::uint64_t outside = ~std::uint64_t{0};  ///< pages there that were in no stripe, when they were looked at last
    std::optional<Error> problem;
    bool busy = false, running = false, again = false;
  };
  /// The part of a group that one host has, on its way to another one: a transaction.
  struct Handing {
    std::size_t group = 0;
    unsigned column = 0;
    std::size_t from = 0, to = 0;
    PageServer* server = nullptr; ///< where it goes to: another one may get that number
    std::vector<Cell> cells;      ///< ascending
    std::size_t next = 0;         ///< of them
    Cells copied;
    std::uint64_t reserved = 0;
    std::optional<Error> failed;
    std::function<void(std::optional<Error>)> done;
  };
  struct Storing {
    Evicted evicted;
    Stored stored;
    std::size_t groups = 1;
    Status result;
  };

  // parity_cells.cpp: what is where; reading and writing
  std::size_t group_of(PageNumber page) const;
  Cell cell_of(PageNumber page) const;
  PageNumber page_of(std::size_t group, Cell cell) const;
  bool is_page(std::size_t group, Cell cell) const;  ///< columns of the last group may be short
  Stripe& stripe(std::size_t group, std::uint32_t offset);
  const Stripe& stripe(std::size_t group, std::uint32_t offset) const;
  bool alive(std::size_t host) const;
  bool in_stripe(std::size_t group, Cell cell) const;
  bool readable(std::size_t group, Cell cell) const;
  bool host_lives(std::size_t group, unsigned column) const { return alive(groups_[group].hosts[column]); }
  Cells others(std::size_t group, std::uint32_t offset, const Cells& but) const;
  bool all_readable(std::size_t group, const Cells& cells) const;
  bool redundant(std::size_t group, std::uint32_t offset) const;
  bool reconstructible(std::size_t group, Cell cell) const;
  void mark(std::size_t group, Cell cell, bool there);
  void read(std::size_t group, const Cells& cells, Then then);
  void take(std::size_t group, unsigned column, std::size_t host, const std::vector<std::uint32_t>& offsets,
            const Result<std::pair<Batch, Frame>>& answer, Contents& contents);
  void reconstruct(std::size_t group, const Cells& cells, Then then);
  void write(std::size_t group, const std::map<Cell, const std::byte*>& cells, std::shared_ptr<const void> hold, Done then);
  void remove(std::size_t group, const Cells& cells);

  // parity.cpp: transactions of a group, fetch and store
  void enqueue(std::size_t group, Transaction transaction);
  void run_next(std::size_t group);
  void change(const std::shared_ptr<Change>& change);
  Cells plan(Change& change, bool again);
  void apply(const std::shared_ptr<Change>& change);
  void fetch_group(std::size_t group, const std::vector<PageNumber>& pages, const std::shared_ptr<Arrived>& arrived);
  std::vector<PageNumber> deliver(const std::vector<PageNumber>& pages, const Contents& contents,
                                  const std::shared_ptr<Arrived>& arrived);
  void begin(const std::shared_ptr<Storing>& storing);
  void store_group(std::size_t group, const std::shared_ptr<Storing>& storing, const std::vector<std::size_t>& which, Done done);
  void finished(const std::shared_ptr<Storing>& storing);

  // parity_outside.cpp: what was restored
  bool is_image(std::size_t host) const { return hosts_[host].parity == nullptr; }
  void fetch_outside(std::size_t host, const std::vector<PageNumber>& pages, const std::shared_ptr<Arrived>& arrived);
  enum class Copy { drop, forget };
  void leave_outside(std::span<const PageNumber> pages, Copy copy);
  bool to_take_in(PageNumber page, std::size_t host) const;
  unsigned drop_outside_duplicates();
  void take_in_next();
  void take_in(std::size_t group, std::size_t host, std::vector<PageNumber> pages, Done done);
  void taken_in(std::size_t group, std::size_t host, const std::vector<PageNumber>& pages);
  void tell_rebuilt();
  void tell_sent();

  // parity_image.cpp: pages for an image that are computed
  Cells held_in(const Change& change) const;
  void set_aside(const std::shared_ptr<Held>& held, std::size_t group, const Cells& cells, Done then);
  void give_held();
  void read_more_held(const std::shared_ptr<Held>& held, PageNumber first);

  // parity_leaving.cpp: living hosts that leave
  void leave_on(std::size_t host);
  void leave_step(std::size_t host, const std::shared_ptr<Leaving>& leaving);
  void leave_outside_of(std::size_t host, const std::shared_ptr<Leaving>& leaving);
  void left(std::size_t host, const Status& status);
  void hand_over(std::size_t group, std::size_t host, std::function<void(std::optional<Error>)> done);
  void copy_next(const std::shared_ptr<Handing>& handing);
  void handed_over(const std::shared_ptr<Handing>& handing);
  void drop_copied(const Handing& handing, std::size_t host);
  std::optional<std::size_t> place_for(std::size_t group, unsigned column) const;
  std::vector<PageNumber> counted_in(std::size_t group, unsigned column) const;
  void set_host(std::size_t group, unsigned column, std::size_t host);

  // parity_room.cpp: deaths and repair; room
  void replace_dead_hosts(std::size_t group);
  void repair_soon(std::size_t group);
  void repair_next();
  void repair(std::size_t group, std::uint32_t from, Done done);
  void set_counted(PageNumber page, bool counted);
  bool reserve(const Evicted& evicted);
  unsigned make_room();
  void admit_waiting();

  Options options_;
  std::vector<Host> hosts_;
  std::vector<bool> dead_;
  std::vector<std::uint64_t> used_;      ///< pages with data, by host, without XORs
  std::vector<Page> pages_;
  std::vector<Stripe> stripes_;
  std::vector<Group> groups_;
  std::deque<std::shared_ptr<Storing>> waiting_for_room_;
  PageNumber hand_ = 0;
  unsigned drops_under_way_ = 0, repairs_ = 0, repairs_under_way_ = 0;  ///< repairs_: those that wait, too
  std::deque<std::size_t> to_repair_;    ///< groups
  bool taking_in_ = false, repairing_next_ = false;
  std::uint64_t loaded_outside_ = 0;     ///< pages outside on hosts
  PageNumber taken_in_ = 0;              ///< pages before it were looked at
  std::vector<std::function<void()>> rebuilt_, sent_;
  std::size_t busy_groups_ = 0;
  bool images_count_ = true;
  std::map<std::size_t, std::shared_ptr<Leaving>> leaving_;  ///< by host
  std::shared_ptr<Held> held_;           ///< none: there is no image that needs any
  Counts counts_;
};

}  // namespace yado::pager
