#include "pager/page_table.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>

namespace yado::pager {
namespace {

template <class T>
std::vector<T> of(const Actions& actions) {
  std::vector<T> found;
  for (const Action& action : actions)
    if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
  return found;
}

TEST(PrefetcherTest, AStreamDoublesItsWindowAndRandomFaultsStaySmall) {
  Prefetcher prefetcher(64);
  PageNumber at = 1000;
  std::uint32_t last = 0;
  for (int i = 0; i < 12; ++i) {
    const PageRun window = prefetcher.window(at);
    EXPECT_LE(window.first, at);
    EXPECT_GT(window.first + window.pages, at);
    EXPECT_GE(window.pages, last);
    last = window.pages;
    at = window.first + window.pages;
  }
  EXPECT_EQ(last, 64u);
  std::mt19937_64 random(1);
  std::uint64_t fetched = 0;
  for (int i = 0; i < 100; ++i) fetched += prefetcher.window(random() % 100'000'000).pages;
  EXPECT_LT(fetched, 300u);
}

TEST(PrefetcherTest, MostOneIsThePageAlone) {
  Prefetcher prefetcher(1);
  for (PageNumber page = 0; page < 100; ++page) EXPECT_EQ(prefetcher.window(page), (PageRun{page, 1}));
}

TEST(PageTableTest, TheWaitedForPageComesFirst) {
  PageTable table({.pages = 1000, .local_limit = 500, .prefetch_most = 64});
  Actions out;
  for (PageNumber page = 0; page < 8; ++page) table.fault(page, out);
  const auto fetches = of<Fetch>(out);
  ASSERT_GE(fetches.size(), 2u);
  EXPECT_TRUE(fetches[0].urgent);
  EXPECT_EQ(fetches[0].pages, std::vector<PageNumber>{0});
  EXPECT_FALSE(fetches.back().urgent);
}

/// Faults pages one by one and lets everything happen at once, so that only the order of eviction is in question.
struct Quick {
  PageTable table;
  std::set<PageNumber> unmapped;
  std::vector<PageNumber> gone;

  void run(Actions actions) {
    for (std::size_t i = 0; i < actions.size(); ++i) {
      const Action action = actions[i];
      if (const auto* fetch = std::get_if<Fetch>(&action)) table.fetched(fetch->pages, actions);
      if (const auto* unmap = std::get_if<Unmap>(&action)) unmapped.insert(unmap->pages.begin(), unmap->pages.end());
      if (const auto* evict = std::get_if<Evict>(&action)) table.stored(evict->ticket, actions);
      if (const auto* punch = std::get_if<Punch>(&action)) {
        gone.insert(gone.end(), punch->pages.begin(), punch->pages.end());
        table.punched(punch->ticket, actions);
      }
    }
  }
  void touch(PageNumber page) {
    if (table.state(page) == PageState::local) return;
    Actions actions;
    table.fault(page, actions);
    run(std::move(actions));
  }
};

TEST(PageTableTest, WhatIsUsedStaysAndWhatIsNotGoes) {
  Quick quick{PageTable({.pages = 10'000, .local_limit = 256, .prefetch_most = 1}), {}, {}};
  for (PageNumber page = 100; page < 5000; ++page) {
    quick.touch(page);
    for (PageNumber hot = 0; hot < 32; ++hot) quick.touch(hot);
  }
  for (const PageNumber page : quick.gone) EXPECT_GE(page, 100u) << "a page in use was evicted";
  EXPECT_GT(quick.gone.size(), 4000u);
  EXPECT_LE(quick.table.counts().in_file, 256u);
}

TEST(PageTableTest, TheOrderOfUseIsTakenDownInPieces) {
  constexpr std::uint64_t pages = 64;
  PageTable table({.pages = pages, .local_limit = pages});
  Actions actions;
  table.adopt_local({0, 48});
  for (const PageNumber page : {5, 40, 7, 33}) table.fault(page, actions);
  const auto order = [&](const std::function<void()>& in_between) {
    PageTable::Recency recency(pages);
    table.take_down({0, 32}, recency);
    in_between();
    table.take_down({32, 32}, recency);
    return recency.pages();
  };
  const auto at_rest = order([] {});
  EXPECT_EQ(std::vector(at_rest.begin(), at_rest.begin() + 4), (std::vector<PageNumber>{33, 7, 40, 5}));
  auto changed = order([&] {
    for (const PageNumber page : {40, 20, 5, 44, 7}) table.fault(page, actions);
  });
  std::ranges::sort(changed);
  std::vector<PageNumber> all(48);
  std::iota(all.begin(), all.end(), PageNumber{0});
  EXPECT_EQ(changed, all) << "each once, whatever moved meanwhile";
}

TEST(PageTableTest, AFaultUndoesAnEvictionAndItsStoreDoesNotPunch) {
  PageTable table({.pages = 1000, .local_limit = 16, .prefetch_most = 1});
  Actions out;
  std::optional<Evict> evict;
  for (PageNumber page = 0; page < 64 && !evict; ++page) {
    out.clear();
    table.fault(page, out);
    for (const Fetch& fetch : of<Fetch>(out)) table.fetched(fetch.pages, out);
    if (!of<Evict>(out).empty()) evict = of<Evict>(out)[0];
  }
  ASSERT_TRUE(evict);
  out.clear();
  for (const PageNumber page : evict->pages) table.fault(page, out);
  EXPECT_EQ(of<Map>(out).size(), evict->pages.size());
  out.clear();
  table.stored(evict->ticket, out);
  for (const Punch& punch : of<Punch>(out)) EXPECT_NE(punch.ticket, evict->ticket);
}

TEST(PageTableTest, WhenStoresFailTheGuestGoesOnOverTheLimit) {
  PageTable table({.pages = 1000, .local_limit = 16, .prefetch_most = 1});
  Actions out;
  for (PageNumber page = 0; page < 200; ++page) {
    table.fault(page, out);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const Action action = out[i];
      if (const auto* fetch = std::get_if<Fetch>(&action)) table.fetched(fetch->pages, out);
      if (const auto* evict = std::get_if<Evict>(&action)) table.store_failed(evict->ticket, out);
    }
    out.clear();
  }
  EXPECT_EQ(table.counts().in_file, 200u);
  EXPECT_EQ(table.counts().over_limit, 184u);
  table.resume(out);
  EXPECT_FALSE(of<Evict>(out).empty());
}

// ---- simulation: a kernel, guest threads, an evictor and a network, all with delays of their own -----------------

/// What happens next, and how: from a seed, or a list that RapidCheck can make small.
class Choices {
 public:
  explicit Choices(std::uint64_t seed) : random_(seed) {}
  explicit Choices(std::vector<std::uint16_t> list) : list_(std::move(list)), left_(list_.size()) {}
  std::uint64_t operator()() {
    if (left_ == 0 || list_.empty()) return random_();
    return list_[list_.size() - left_--];
  }
  /// At the end of a list; chance goes on.
  bool over() const { return !list_.empty() && left_ == 0; }

 private:
  std::vector<std::uint16_t> list_;
  std::size_t left_ = 0;
  std::mt19937_64 random_;
};

/// Throws what does not hold.
template <class... T>
void must(bool holds, fmt::format_string<T...> otherwise, T&&... values) {
  if (!holds) throw std::logic_error(fmt::format(otherwise, std::forward<T>(values)...));
}

class World {
 public:
  World(Choices choices, bool failing)
      : choose_(std::move(choices)),
        failing_(failing),
        pages_(64 + choose_() % 200),
        limit_(16 + choose_() % 48),
        table_({.pages = pages_, .local_limit = limit_, .prefetch_most = 1U << choose_() % 6, .fetching_most = 24,
                .evicting_most = 24}),
        kernel_(pages_),
        guests_(1 + choose_() % 6) {
    for (int& laziness : laziness_) laziness = chance(3) ? 40 : 1;
  }

  void run() {
    for (int step = 0; step < 4000 && !choose_.over(); ++step) any_step(true);
    // Nothing new is asked for: everybody must come to rest.
    for (int step = 0; any_step(false); ++step) must(step < 100'000, "it never comes to rest");
    for (const Guest& guest : guests_) must(!guest.waits_for, "stuck at page {}", guest.waits_for.value_or(0));
    for (PageNumber page = 0; page < pages_; ++page) must(kernel_[page].file.value_or(remote(page)) == kernel_[page].truth, "page {} is not what was written", page);
    must(table_.counts().waiting + table_.counts().fetching + table_.counts().evicting == 0, "something is under way at rest");
  }
  std::uint64_t reads() const { return reads_; }

 private:
  struct KernelPage {
    std::optional<std::uint64_t> file;  // in the page cache
    bool mapped = false;
    std::uint64_t truth = 0;
  };
  struct Guest {
    std::optional<PageNumber> waits_for;
  };
  struct Store {
    std::uint64_t ticket;
    std::vector<std::pair<PageNumber, std::uint64_t>> contents;
    bool arrived = false, fails = false;
  };

  std::uint64_t remote(PageNumber page) { return remote_.contains(page) ? remote_[page] : 0; }
  bool chance(int one_in) { return choose_() % one_in == 0; }

  /// One step of somebody; false when nobody has anything to do.
  bool any_step(bool guests_act) {
    std::vector<std::pair<int, std::function<void()>>> possible;
    for (Guest& guest : guests_)
      if (guests_act && !guest.waits_for) possible.emplace_back(0, [&] { guest_step(guest); });
    if (!events_.empty()) possible.emplace_back(1, [&] { read_event(); });
    if (!evictor_.empty()) possible.emplace_back(2, [&] { evictor_step(); });
    if (!fetches_.empty()) possible.emplace_back(3, [&] { fetch_arrives(); });
    if (!placed_.empty()) possible.emplace_back(4, [&] { report_fetched(); });
    if (!stores_.empty()) possible.emplace_back(5, [&] { store_step(); });
    if (!punched_.empty()) possible.emplace_back(6, [&] { report_punched(); });
    if (paused_) possible.emplace_back(7, [&] { resume(); });
    if (possible.empty()) return false;
    const auto& [kind, step] = possible[choose_() % possible.size()];
    if (possible.size() == 1 || chance(laziness_[kind])) step();
    must(failing_ || table_.counts().in_file <= limit_, "more is here than may be");
    return true;
  }

  void resume() {
    paused_ = false;
    act([&](Actions& out) { table_.resume(out); });
  }

  void guest_step(Guest& guest) {
    // Mostly few pages, so that the same ones meet again while something of them is under way.
    const PageNumber page = chance(2) ? choose_() % pages_ : choose_() % 24;
    KernelPage& at = kernel_[page];
    if (at.mapped) {
      ++reads_;
      must(at.file.value() == at.truth, "a stale word in page {}", page);
      if (chance(2)) at.file = at.truth = choose_();
      return;
    }
    guest.waits_for = page;
    events_.push_back(page);
  }

  void read_event() {
    const PageNumber page = events_.front();
    events_.pop_front();
    act([&](Actions& out) { table_.fault(page, out); });
  }

  template <class Event>
  void act(Event event) {
    Actions out;
    event(out);
    for (Action& action : out) {
      if (const auto* map = std::get_if<Map>(&action)) {
        must(kernel_[map->page].file.has_value(), "CONTINUE of a hole: EFAULT");
        kernel_[map->page].mapped = true;
        wake(map->page);
      } else if (const auto* fetch = std::get_if<Fetch>(&action)) {
        fetches_.push_back(fetch->pages);
      } else if (const auto* unmap = std::get_if<Unmap>(&action)) {
        evictor_.push_back([this, job = *unmap] { start(job); });
      } else if (const auto* evict = std::get_if<Evict>(&action)) {
        evictor_.push_back([this, job = *evict] { start(job); });
      } else if (const auto* punch = std::get_if<Punch>(&action)) {
        evictor_.push_back([this, job = *punch] { start(job); });
      }
    }
    for (PageNumber page = 0; page < pages_; ++page) {
      const PageState state = table_.state(page);
      must(table_.needs_remote(page) == (state == PageState::remote || state == PageState::fetching || state == PageState::punching), "page {} is said to be where it is not", page);
    }
  }

  void wake(PageNumber page) {
    for (Guest& guest : guests_)
      if (guest.waits_for == page) guest.waits_for.reset();
  }

  void fetch_arrives() {
    auto chosen = std::next(fetches_.begin(), static_cast<long>(choose_() % fetches_.size()));
    std::vector<PageNumber> pages = std::move(*chosen);
    fetches_.erase(chosen);
    for (const PageNumber page : pages) {
      must(!kernel_[page].file, "UFFDIO_COPY onto a page: EEXIST");
      must(remote(page) == kernel_[page].truth, "page {} comes back old", page);
      kernel_[page].file = remote(page);
      kernel_[page].mapped = true;
      wake(page);
    }
    placed_.push_back(std::move(pages));
  }

  void report_fetched() {
    const auto pages = std::move(placed_.front());
    placed_.pop_front();
    act([&](Actions& out) { table_.fetched(pages, out); });
  }

  void evictor_step() {
    const auto step = std::move(evictor_.front());
    evictor_.pop_front();
    step();
  }

  void start(const Unmap& unmap) {
    for (const PageNumber page : unmap.pages) kernel_[page].mapped = false;
  }

  /// The guest may undo it and write between any two reads: they are steps of their own, before anything else.
  void start(const Evict& evict) {
    for (const PageNumber page : evict.pages) kernel_[page].mapped = false;
    reading_ = Store{evict.ticket, {}, false, failing_ && chance(10)};
    evictor_.push_front([this] { stores_.push_back(std::exchange(reading_, {})); });
    for (const PageNumber page : evict.pages)
      evictor_.push_front([this, page] { reading_.contents.emplace_back(page, kernel_[page].file.value()); });
  }

  void start(const Punch& punch) {
    for (const PageNumber page : punch.pages) {
      must(!kernel_[page].mapped, "page {} is punched under the guest", page);
      must(remote(page) == kernel_[page].truth, "page {} is lost", page);
      kernel_[page].file.reset();
    }
    punched_.push_back(punch.ticket);
  }

  void store_step() {
    // They arrive in their order; acknowledgements take their time.
    for (Store& store : stores_)
      if (!store.arrived) {
        store.arrived = true;
        if (!store.fails || chance(2))
          for (const auto& [page, content] : store.contents) remote_[page] = content;
        return;
      }
    const Store store = std::move(stores_.front());
    stores_.pop_front();
    if (store.fails) {
      paused_ = true;
      act([&](Actions& out) { table_.store_failed(store.ticket, out); });
    } else {
      act([&](Actions& out) { table_.stored(store.ticket, out); });
    }
  }

  void report_punched() {
    const std::uint64_t ticket = punched_.front();
    punched_.pop_front();
    act([&](Actions& out) { table_.punched(ticket, out); });
  }

  Choices choose_;
  bool failing_;
  std::uint64_t pages_, limit_;
  PageTable table_;
  std::vector<KernelPage> kernel_;
  std::vector<Guest> guests_;
  std::map<PageNumber, std::uint64_t> remote_;
  std::deque<PageNumber> events_;
  std::deque<std::function<void()>> evictor_;
  Store reading_;
  std::list<std::vector<PageNumber>> fetches_;
  std::deque<std::vector<PageNumber>> placed_;
  std::deque<Store> stores_;
  std::deque<std::uint64_t> punched_;
  bool paused_ = false;
  std::uint64_t reads_ = 0;
  int laziness_[8];  ///< by kind of step: one in how many chances is taken, so that everything is slow in some world
};

TEST(PageTableSimulation, NoPageIsLostOrServedStaleOrStuck) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    World world(Choices(seed), false);
    ASSERT_NO_THROW(world.run());
    EXPECT_GT(world.reads(), 0u);
  }
}

TEST(PageTableSimulation, NorWhenStoresFail) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    World world(Choices(seed), true);
    ASSERT_NO_THROW(world.run());
  }
}

/// A failure is made small, and printed with how to repeat it (RC_PARAMS).
RC_GTEST_PROP(PageTableSimulation, NorWhateverHappens, (bool failing)) {
  constexpr int longest = 4000;
  const auto any_number = rc::gen::resize(rc::kNominalSize, rc::gen::arbitrary<std::uint16_t>());
  World world(Choices(*rc::gen::resize(longest, rc::gen::container<std::vector<std::uint16_t>>(any_number))), failing);
  world.run();
}

}  // namespace
}  // namespace yado::pager
