// Cuts of sessions, without sockets: what a part of an image says is what the pages were at FIX.

#include "pager/saving.hpp"

#include <algorithm>
#include <random>
#include <set>
#include <thread>

#include "image/page_testing.hpp"
#include "image/temporary_directory.hpp"
#include "pager/pager_testing.hpp"
#include "pager/session.hpp"

namespace yado::pager {
namespace {

constexpr std::uint64_t guest_pages = 9000;  // three leaves
constexpr PageStore::Owner owner{1, 1};

image::CutId cut(int number) { return image::cut_number(number); }
std::string name(int number) { return "image-" + std::to_string(number); }

/// One memory server's session, with an archive of its own or a shared one.
struct Holder {
  explicit Holder(const std::filesystem::path& root, const std::string& host = "h1")
      : archive(std::make_shared<DirectoryArchive>(root, host)),
        session("vm", "local", 1, arena, Hello{.epoch = 1, .pages = guest_pages, .quota_pages = guest_pages}, archive) {
    EXPECT_TRUE(session.store().take_over(owner));
  }
  void put(const Contents& contents) {
    const PutBody body = put_body(contents);
    const Status done = session.store().put(owner, body.batch());
    EXPECT_TRUE(done) << done.error().text();
  }
  void drop(PageNumber page) { EXPECT_TRUE(session.store().drop(owner, wanted({{page, 1}}))); }
  Result<Contents> get(std::vector<PageRun> runs) const {
    std::vector<std::byte> space(256 * page_bytes);
    auto found = session.store().get(owner, wanted(std::move(runs)), space);
    if (!found) return std::unexpected(found.error());
    return contents_of(found->runs, found->data);
  }
  Result<Saved> finish(int number, const std::vector<PageRun>& owned) {
    if (auto done = session.own({with_kind(owned, PageKind::wanted), name(number)}); !done) return std::unexpected(done.error());
    return session.finish(name(number));
  }
  /// All of it, with nothing in between. Returns what the part has.
  Result<Saved> save(int number, image::CutId base, const std::vector<PageRun>& owned) {
    YADO_TRY(session.save({name(number), cut(number), base}), "save");
    YADO_TRY(session.fix(name(number)), "fix");
    YADO_ASSIGN(const Saved saved, finish(number, owned), "finish");
    YADO_TRY(session.keep(name(number)), "keep");
    return saved;
  }

  PageArena arena{2 * guest_pages};
  std::shared_ptr<DirectoryArchive> archive;
  Session session;
};

/// What the images say, as numbers; pages of zeros left out.
Contents read_chain(PageArchive& archive, int from, int to) {
  std::vector<std::string> names;
  for (int number = from; number <= to; ++number) names.push_back(name(number));
  const auto chain = open_chain(archive, "vm", names);
  EXPECT_TRUE(chain) << chain.error().text();
  Contents out;
  if (!chain) return out;
  for (PageNumber page = 0; page < guest_pages; ++page) {
    Page content;
    const Status read = (*chain)->read(image::PageNumber{page}, content);
    EXPECT_TRUE(read) << read.error().text();
    const Contents one = contents_of({{page, 1, PageKind::data}}, content);
    if (one.at(page) != 0) out[page] = one.at(page);
  }
  return out;
}

class SavingTest : public ::testing::Test {
 protected:
  /// All pages of the guest, so that one holder's part is a whole image.
  void put_everything() {
    for (PageNumber first = 0; first < guest_pages; first += 250) {
      Contents some;
      for (PageNumber page = first; page < first + 250; ++page) some[page] = page % 3 == 0 ? page + 1 : 0;
      holder.put(some);
      model.merge(some);
    }
    std::erase_if(model, [](const auto& page) { return page.second == 0; });
  }
  void put(const Contents& contents) {
    holder.put(contents);
    for (const auto& [page, number] : contents)
      if (number == 0) model.erase(page); else model[page] = number;
  }

  image::TemporaryDirectory directory;
  Holder holder{directory.path()};
  Contents model;
  const std::vector<PageRun> all{{0, guest_pages}};
};

TEST_F(SavingTest, APartIsWhatThePagesWereAtFix) {
  put_everything();
  const auto first = holder.session.save({name(1), cut(1), {}});
  ASSERT_TRUE(first) << first.error().text();
  EXPECT_EQ(first->pages, guest_pages);
  EXPECT_GE(first->bytes, guest_pages / 3 * page_bytes);
  put({{3, 77}, {5000, 78}, {6, 0}});
  put({{3, 79}, {9, 80}, {4, 81}});
  ASSERT_TRUE(holder.session.fix(name(1)));
  const Contents at_fix = model;
  put({{3, 90}, {12, 91}, {5000, 92}, {9, 0}});  // 3, 5000 and 9 have yet to be written, 12 is
  put({{3, 93}});
  holder.drop(4);
  holder.drop(15);
  const auto last = holder.finish(1, all);
  ASSERT_TRUE(last) << last.error().text();
  EXPECT_EQ(last->pages, guest_pages) << "in the whole part";
  ASSERT_TRUE(holder.session.keep(name(1)));
  EXPECT_EQ(read_chain(*holder.archive, 1, 1), at_fix);
  EXPECT_EQ(holder.session.store().stats().changed_pages, 4u) << "3, 12, 5000 and 9: put since FIX";
}

TEST_F(SavingTest, ItsStatsSayHowFarItIs) {
  const auto so_far = [&] {
    const SessionStats stats = holder.session.store().stats();
    return std::pair(stats.saved_pages, stats.pending_pages);
  };
  put_everything();
  EXPECT_EQ(so_far(), std::pair(0ul, 0ul)) << "no checkpoint is under way";
  ASSERT_TRUE(holder.session.save({name(1), cut(1), {}}));
  EXPECT_EQ(so_far(), std::pair(guest_pages, 0ul));
  put({{3, 77}, {9, 80}});
  EXPECT_EQ(so_far(), std::pair(guest_pages, 2ul));
  ASSERT_TRUE(holder.session.fix(name(1)));
  put({{3, 78}});
  EXPECT_EQ(so_far(), std::pair(guest_pages, 2ul)) << "what is set aside has yet to be written";
  ASSERT_TRUE(holder.finish(1, all));
  EXPECT_EQ(so_far(), std::pair(guest_pages + 2, 0ul));
  ASSERT_TRUE(holder.session.keep(name(1)));
  EXPECT_EQ(so_far(), std::pair(0ul, 0ul));
}

TEST_F(SavingTest, ADeltaHasOnlyWhatChangedSinceTheLastKeptCut) {
  put_everything();
  ASSERT_TRUE(holder.save(1, {}, all));
  put({{3, 77}, {8000, 78}});
  ASSERT_TRUE(holder.session.save({name(2), cut(2), cut(1)}));
  put({{6, 79}});
  holder.session.abandon(name(2));
  put({{9, 80}});
  const auto saved = holder.save(3, cut(1), all);
  ASSERT_TRUE(saved) << saved.error().text();
  EXPECT_EQ(saved->pages, 4u) << "also what changed before the abandoned one";
  std::filesystem::rename(directory.path() / name(3), directory.path() / name(2));
  EXPECT_EQ(read_chain(*holder.archive, 1, 2), model);
  EXPECT_EQ(holder.save(4, cut(3), all)->pages, 0u);
}

TEST_F(SavingTest, APageSentBackUnchangedIsNotSavedAgainInADelta) {
  put_everything();
  ASSERT_TRUE(holder.save(1, {}, all));
  const auto put_unchanged = [&](PageNumber page) {
    ASSERT_TRUE(holder.session.store().put(owner, put_body({{page, model.at(page)}}).batch(), true));
  };
  holder.drop(3);
  put_unchanged(3);
  ASSERT_TRUE(holder.session.save({name(2), cut(2), cut(1)}));
  holder.drop(6);
  put_unchanged(6);
  put({{9, 90}});
  ASSERT_TRUE(holder.session.fix(name(2)));
  holder.drop(12);
  put_unchanged(12);
  const auto saved = holder.finish(2, all);
  ASSERT_TRUE(saved) << saved.error().text();
  EXPECT_EQ(saved->pages, 1u);
  ASSERT_TRUE(holder.session.keep(name(2)));
  EXPECT_EQ(read_chain(*holder.archive, 1, 2), model);
  EXPECT_EQ(holder.session.store().stats().changed_pages, 0u);
  ASSERT_TRUE(holder.session.save({name(3), cut(3), {}}));
  holder.drop(15);
  put_unchanged(15);
  ASSERT_TRUE(holder.session.fix(name(3)));
  EXPECT_EQ(holder.finish(3, all)->pages, guest_pages) << "a full image needs it";
  ASSERT_TRUE(holder.session.keep(name(3)));
  EXPECT_EQ(read_chain(*holder.archive, 3, 3), model);
}

TEST_F(SavingTest, OnAnotherBaseThanTheKeptOneEverythingHeldIsWritten) {
  put_everything();
  ASSERT_TRUE(holder.save(1, {}, all));
  ASSERT_TRUE(holder.save(2, cut(1), all));
  put({{3, 77}});
  const auto saved = holder.save(3, cut(1), all);  // image 2 got lost elsewhere
  ASSERT_TRUE(saved) << saved.error().text();
  EXPECT_EQ(saved->pages, guest_pages);
  std::filesystem::remove_all(directory.path() / name(2));
  std::filesystem::rename(directory.path() / name(3), directory.path() / name(2));
  EXPECT_EQ(read_chain(*holder.archive, 1, 2), model);
}

TEST_F(SavingTest, RepetitionsAreHarmlessAndTheOrderIsKept) {
  put_everything();
  EXPECT_EQ(holder.session.fix(name(1)).error().code, Errc::conflict);
  const SaveRequest request{name(1), cut(1), {}};
  const auto once = holder.session.save(request), again = holder.session.save(request);
  ASSERT_TRUE(once && again);
  EXPECT_EQ(once->pages, again->pages);
  EXPECT_EQ(holder.session.save({name(2), cut(2), {}}).error().code, Errc::conflict);
  EXPECT_EQ(holder.finish(1, all).error().code, Errc::conflict) << "FIX comes first";
  EXPECT_EQ(holder.session.keep(name(1)).error().code, Errc::conflict) << "FINISH comes first";
  ASSERT_TRUE(holder.session.fix(name(1)));
  ASSERT_TRUE(holder.session.fix(name(1)));
  EXPECT_EQ(holder.session.own({{{guest_pages - 1, 2, PageKind::wanted}}, name(1)}).error().code, Errc::invalid_argument);
  ASSERT_TRUE(holder.finish(1, all));
  EXPECT_TRUE(holder.finish(1, all));
  ASSERT_TRUE(holder.session.keep(name(1)));
  EXPECT_TRUE(holder.session.keep(name(1)));
  EXPECT_EQ(holder.session.keep(name(2)).error().code, Errc::conflict);
  holder.session.abandon(name(1));
  EXPECT_EQ(read_chain(*holder.archive, 1, 1), model) << "abandoning what was kept does nothing";
}

TEST_F(SavingTest, AFailedDraftIsGoneAndTheNextOneWorks) {
  put_everything();
  holder.drop(7);
  const auto saved = holder.save(1, {}, all);
  ASSERT_FALSE(saved) << "page 7 is owned and not held";
  EXPECT_EQ(saved.error().code, Errc::conflict);
  EXPECT_NE(saved.error().message.find("page 7"), std::string::npos) << saved.error().text();
  EXPECT_FALSE(std::filesystem::exists(directory.path() / name(1)));
  holder.put({{7, 0}});
  EXPECT_TRUE(holder.save(1, {}, all));
  EXPECT_EQ(holder.save(1, cut(1), all).error().code, Errc::already_exists) << "an image's name is never used again";
}

TEST_F(SavingTest, ASaveThatIsHeldBackByItsRateCanBeStopped) {
  class Slow : public DirectoryArchive {
   public:
    using DirectoryArchive::DirectoryArchive;
    std::uint64_t bytes_per_second() const override { return 1; }
  };
  PageArena arena(guest_pages);
  Session session("vm", "local", 1, arena, Hello{.epoch = 1, .pages = guest_pages, .quota_pages = guest_pages},
                  std::make_shared<Slow>(directory.path(), "h9"));
  ASSERT_TRUE(session.store().take_over(owner));
  for (PageNumber first = 0; first < 2000; first += 250) {
    Contents some;
    for (PageNumber page = first; page < first + 250; ++page) some[page] = page + 1;
    ASSERT_TRUE(session.store().put(owner, put_body(some).batch()));
  }
  std::jthread stopper([&] {
    while (!std::filesystem::exists(directory.path() / name(1) / "draft-h9" / "pages.log")) std::this_thread::yield();
    while (session.fix(name(1)).has_value() == false) std::this_thread::yield();  // a round is under way
    session.stop_saving(name(1));
  });
  EXPECT_EQ(session.save({name(1), cut(1), {}}).error().code, Errc::canceled) << "8 MB at 1 byte/s";
}

TEST_F(SavingTest, NothingHalfSavedIsTakenForAnImage) {
  put_everything();
  {
    Holder dying(directory.path(), "h2");
    dying.put({{1, 1}});
    ASSERT_TRUE(dying.session.save({name(1), cut(1), {}}));
    EXPECT_TRUE(std::filesystem::exists(directory.path() / name(1)));
    ASSERT_FALSE(open_chain(*holder.archive, "vm", {name(1)}));
  }
  EXPECT_FALSE(std::filesystem::exists(directory.path() / name(1)));
}

TEST_F(SavingTest, WhatIsPutDuringTheFirstRoundIsWrittenOnceAtTheEnd) {
  put_everything();
  auto& store = holder.session.store();
  store.begin_cut(PageStore::Scope::all);
  put({{3, 77}, {5000, 78}});
  Page content;
  std::set<PageNumber> first, rest;
  const auto take = [&](std::set<PageNumber>& into, PageStore::Which which) {
    for (auto page = store.take_pending(0, content, which); page && *page; page = store.take_pending((*page)->page + 1, content, which)) into.insert((*page)->page);
  };
  take(first, PageStore::Which::settled);
  EXPECT_EQ(first.size(), guest_pages - 2);
  put({{3, 79}});
  store.fix();
  EXPECT_EQ(store.pending_pages(), 2u);
  take(rest, PageStore::Which::all);
  EXPECT_EQ(rest, (std::set<PageNumber>{3, 5000}));
  store.end_cut(false);
}

TEST_F(SavingTest, FixMayComeAsSoonAsWhatIsLeftMayBeSetAside) {
  put_everything();
  int told = 0;
  ASSERT_TRUE(holder.session.save({name(1), cut(1), {}}, [&](const Saved& so_far) {
    ++told;
    EXPECT_EQ(so_far.pages, 0u) << "64 MiB may be, and all of it is less";
    EXPECT_TRUE(holder.session.fix(name(1)));
    put({{3, 90}, {12, 91}});
  }));
  EXPECT_EQ(told, 1);
  ASSERT_TRUE(holder.finish(1, all));
  ASSERT_TRUE(holder.session.keep(name(1)));
  const Contents kept = read_chain(*holder.archive, 1, 1);
  EXPECT_EQ(kept.at(3), 4u);
  EXPECT_EQ(kept.at(12), 13u);
  EXPECT_EQ(holder.session.store().stats().changed_pages, 2u);
}

TEST_F(SavingTest, WhoAsksForADraftThatFailedIsToldWhy) {
  put_everything();
  ASSERT_TRUE(holder.session.save({name(1), cut(1), {}}));
  holder.session.stop_saving(name(1));
  ASSERT_TRUE(holder.session.fix(name(1)));
  EXPECT_EQ(holder.finish(1, all).error().code, Errc::canceled);
  const auto late = holder.session.keep(name(1));
  EXPECT_EQ(late.error().code, Errc::canceled);
  EXPECT_NE(late.error().message.find("image-1"), std::string::npos) << late.error().text();
  EXPECT_TRUE(holder.save(2, {}, all)) << "the next one is not concerned";
}

TEST_F(SavingTest, MuchThatIsSetAsideMakesWritersWait) {
  put_everything();
  Contents some;
  for (PageNumber page = 0; page < guest_pages; ++page) some[page] = page + 5;
  PageArena arena(40'000);
  PageStore store(arena, 40'000, 40'000);
  ASSERT_TRUE(store.take_over(owner));
  const auto put_all = [&](std::uint64_t number) {
    for (PageNumber first = 0; first < 20'000; first += 250) {
      Contents batch;
      for (PageNumber page = first; page < first + 250; ++page) batch[page] = number;
      const PutBody body = put_body(batch);
      ASSERT_TRUE(store.put(owner, body.batch()));
    }
  };
  put_all(1);
  store.begin_cut(PageStore::Scope::all);
  store.fix();
  int woken = 0;
  EXPECT_FALSE(store.is_full_aside([&] { ++woken; }));
  put_all(2);
  EXPECT_TRUE(store.is_full_aside([&] { ++woken; }));
  Page content;
  std::size_t taken = 0;
  for (auto page = store.take_aside(content); page && *page; page = store.take_aside(content), ++taken)
    ASSERT_EQ(std::memcmp(content.data(), page_with(1).data(), page_bytes), 0);
  EXPECT_EQ(taken, 20'000u);
  EXPECT_EQ(woken, 1);
  store.end_cut(false);
  put_all(3);
  store.begin_cut(PageStore::Scope::all);
  store.fix();
  put_all(4);
  EXPECT_TRUE(store.is_full_aside([&] { ++woken; }));
  store.close();
  EXPECT_EQ(woken, 2) << "nobody waits for a session that has ended";
  EXPECT_FALSE(store.is_full_aside([&] { ++woken; }));
  store.end_cut(false);
}

/// Pages wander between two servers and the main host (which is a map here) while one cut after the other is taken.
TEST_F(SavingTest, ChainsOfCutsWhilePagesWanderShowEveryInstant) {
  for (unsigned seed = 0; seed < 3; ++seed) {
    image::TemporaryDirectory root;
    Holder one(root.path(), "h1"), two(root.path(), "h2");
    std::array<Holder*, 2> holders{&one, &two};
    std::mt19937 random(seed);
    Contents now;                                   // what each page is
    std::vector<unsigned> where(guest_pages, 2);    // 0, 1: on that server; 2: here
    std::vector<bool> dirty_here(guest_pages, true);  // since the last kept cut
    const auto step = [&] {
      const PageNumber page = random() % 300 * 30;
      if (where[page] < 2) {  // fetched back
        holders[where[page]]->drop(page);
        where[page] = 2;
        dirty_here[page] = true;  // a pager knows better; this is always right
      }
      if (random() % 2 == 0) {
        now[page] = random() % 6 == 0 ? 0 : random();
        dirty_here[page] = true;
      }
      if (random() % 3 != 0) {
        where[page] = random() % 2;
        holders[where[page]]->put({{page, now[page]}});
      }
    };
    int kept = 0;
    for (int number = 1; number <= 8; ++number) {
      for (int i = 0; i < 200; ++i) step();
      const image::CutId base = kept == 0 ? image::CutId{} : cut(kept);
      for (Holder* each : holders) ASSERT_TRUE(each->session.save({name(number), cut(number), base}));
      for (int i = 0; i < 130; ++i) step();
      // The instant.
      for (Holder* each : holders) ASSERT_TRUE(each->session.fix(name(number)));
      const Contents at_fix = now;
      const auto where_at_fix = where;
      const auto dirty_at_fix = dirty_here;
      for (PageNumber page = 0; page < guest_pages; ++page) dirty_here[page] = false;
      for (int i = 0; i < 100; ++i) step();
      std::array<std::vector<PageRun>, 3> owned;
      for (PageNumber page = 0; page < guest_pages; ++page) {
        auto& runs = owned[where_at_fix[page]];
        if (!runs.empty() && runs.back().first + runs.back().pages == page)
          ++runs.back().pages;
        else
          runs.push_back({page, 1});
      }
      for (int i = 0; i < 2; ++i) {
        const auto saved = holders[static_cast<std::size_t>(i)]->finish(number, owned[static_cast<std::size_t>(i)]);
        ASSERT_TRUE(saved) << saved.error().text();
      }
      if (random() % 4 == 0) {  // some other host failed
        for (Holder* each : holders) each->session.abandon(name(number));
        for (PageNumber page = 0; page < guest_pages; ++page)
          if (dirty_at_fix[page]) dirty_here[page] = true;
        continue;
      }
      // The main host's part.
      std::filesystem::create_directories(root.path() / name(number) / "pages-main");
      auto writer = image::PageWriter::create(root.path() / name(number) / "pages-main",
                                              {.guest_pages = guest_pages, .cut = cut(number), .base_cut = base});
      ASSERT_TRUE(writer);
      auto appender = writer->appender();
      image::PageSet set;
      for (const PageRun& run : owned[2]) {
        set.push_back({image::PageNumber{run.first}, run.pages});
        for (PageNumber page = run.first; page < run.first + run.pages; ++page)
          if (dirty_at_fix[page] || base.none()) {
            const auto found = at_fix.find(page);
            ASSERT_TRUE(appender.put(image::PageNumber{page}, page_with(found == at_fix.end() ? 0 : found->second), image::Round{1}));
          }
      }
      ASSERT_TRUE(appender.flush());
      ASSERT_TRUE(writer->finish(set));
      for (Holder* each : holders) ASSERT_TRUE(each->session.keep(name(number)));
      std::vector<std::string> names;
      for (int i = 1; i <= number; ++i)
        if (std::filesystem::exists(root.path() / name(i))) names.push_back(name(i));
      const auto chain = open_chain(*one.archive, "vm", names);
      ASSERT_TRUE(chain) << chain.error().text();
      for (PageNumber page = 0; page < guest_pages; ++page) {
        Page content;
        ASSERT_TRUE((*chain)->read(image::PageNumber{page}, content));
        const auto found = at_fix.find(page);
        ASSERT_EQ(std::memcmp(content.data(), page_with(found == at_fix.end() ? 0 : found->second).data(), page_bytes), 0)
            << "seed " << seed << " cut " << number << " page " << page;
      }
      kept = number;
    }
    ASSERT_GT(kept, 0);
  }
}

TEST_F(SavingTest, ACutIsOneInstantWhileAnotherThreadPuts) {
  put_everything();
  std::atomic<bool> stop = false;
  std::atomic<std::uint64_t> round = 0;
  std::mutex between_puts;
  std::jthread writer([&] {
    std::mt19937 random(7);
    while (!stop) {
      const std::lock_guard lock(between_puts);
      ++round;
      Contents some;
      for (int i = 0; i < 20; ++i) some[random() % guest_pages] = 1'000'000 + round;
      put(some);
    }
  });
  image::CutId base;
  for (int number = 1; number <= 3; ++number) {
    ASSERT_TRUE(holder.session.save({name(number), cut(number), base}));
    Contents at_fix;
    {
      const std::lock_guard lock(between_puts);
      ASSERT_TRUE(holder.session.fix(name(number)));
      at_fix = model;
    }
    ASSERT_TRUE(holder.finish(number, all));
    ASSERT_TRUE(holder.session.keep(name(number)));
    ASSERT_EQ(read_chain(*holder.archive, 1, number), at_fix) << "cut " << number;
    base = cut(number);
  }
  stop = true;
}

// ---- loading ---------------------------------------------------------------------------------------------------------

class LoadingTest : public SavingTest {
 protected:
  LoadingTest() {
    put_everything();
    EXPECT_TRUE(holder.save(1, {}, all));
    put({{3, 77}, {4, 0}});
    EXPECT_TRUE(holder.save(2, cut(1), all));
  }
  Result<std::uint64_t> load(Holder& into, const std::vector<PageRun>& runs, int to = 2) {
    std::vector<std::string> names;
    for (int number = 1; number <= to; ++number) names.push_back(name(number));
    into.session.want({with_kind(runs, PageKind::wanted), names});
    return into.session.load(owner, names);
  }
  Contents expected(PageNumber first, PageNumber end) const {
    Contents out;
    for (PageNumber page = first; page < end; ++page) out[page] = model.contains(page) ? model.at(page) : 0;
    return out;
  }
  Holder other{directory.path(), "h2"};
};

TEST_F(LoadingTest, PagesAreThereAtOnceAndInMemoryLater) {
  const auto loaded = load(other, {{0, 4000}, {5000, 100}});
  ASSERT_TRUE(loaded) << loaded.error().text();
  EXPECT_EQ(*loaded, 4100u);
  SessionStats stats = other.session.store().stats();
  EXPECT_GT(stats.disk_pages, 1000u);
  EXPECT_EQ(stats.changed_pages, 0u);
  EXPECT_EQ(other.get({{0, 200}}).value(), expected(0, 200)) << "from the disk";
  other.put({{30, 5}, {33, 0}});
  while (other.session.bring_in(256)) {}
  EXPECT_EQ(other.session.store().stats().disk_pages, 0u);
  model[30] = 5;
  model.erase(33);
  EXPECT_EQ(other.get({{0, 200}}).value(), expected(0, 200));
  EXPECT_EQ(other.get({{3990, 20}, {5090, 20}}).value().size(), 20u) << "what was not wanted is not there";
  EXPECT_EQ(other.session.store().stats().changed_pages, 2u);
}

TEST_F(LoadingTest, ADeltaAfterALoadHasOnlyWhatChanged) {
  ASSERT_TRUE(load(other, all));
  model[6] = 66;
  other.put({{6, 66}});
  const auto saved = other.save(3, cut(2), all);
  ASSERT_TRUE(saved) << saved.error().text();
  EXPECT_EQ(saved->pages, 1u);
  EXPECT_EQ(read_chain(*other.archive, 1, 3), model);
  EXPECT_EQ(other.session.store().stats().disk_pages, 2999u) << "nothing was read for it";
}

TEST_F(LoadingTest, AFullImageOfWhatIsStillOnTheDisk) {
  ASSERT_TRUE(load(other, all));
  ASSERT_TRUE(other.session.save({name(5), cut(5), {}}));
  ASSERT_TRUE(other.session.fix(name(5)));
  const auto saved = other.finish(5, all);
  ASSERT_TRUE(saved) << saved.error().text();
  ASSERT_TRUE(other.session.keep(name(5)));
  EXPECT_EQ(read_chain(*other.archive, 5, 5), model);
}

TEST_F(LoadingTest, WhatIsOverwrittenAfterFixWhileStillOnTheDiskIsSavedAsItWas) {
  ASSERT_TRUE(load(other, all));
  const PageStore::Owner as = owner;
  auto& store = other.session.store();
  store.begin_cut(PageStore::Scope::all);
  store.fix();
  ASSERT_TRUE(store.put(as, put_body({{9, 99}}).batch()));
  ASSERT_TRUE(store.drop(as, wanted({{12, 1}})));
  Contents seen;
  Page content;
  for (auto page = store.take_aside(content); page && *page; page = store.take_aside(content))
    seen.merge(contents_of({{(*page)->page, 1, (*page)->kind}}, (*page)->kind == PageKind::zero ? Bytes{} : Bytes(content)));
  EXPECT_EQ(seen, (Contents{{9, 10}, {12, 13}}));
  store.end_cut(false);
}

TEST_F(LoadingTest, ADamagedRecordHarmsItsOwnPageOnly) {
  const auto chain = open_chain(*holder.archive, "vm", {name(1), name(2)});
  ASSERT_TRUE(chain);
  const auto place = (*chain)->find(image::PageNumber{30});
  image::flip_bit(directory.path() / name(1) / "pages-h1" / "pages.log", place.page.record.log_offset() + 100, 3);
  ASSERT_TRUE(load(other, all));
  while (other.session.bring_in(256)) {}
  const auto bad = other.get({{29, 3}});
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().code, Errc::corrupt);
  EXPECT_NE(bad.error().message.find("page 30"), std::string::npos) << bad.error().text();
  EXPECT_EQ(other.get({{0, 30}}).value(), expected(0, 30));
  EXPECT_EQ(other.get({{31, 200}}).value(), expected(31, 231));
  EXPECT_EQ(other.session.store().stats().disk_pages, 1u);
  other.put({{30, 3}});
  EXPECT_EQ(other.get({{30, 1}}).value(), (Contents{{30, 3}})) << "a new content cures it";
}

TEST_F(LoadingTest, ALogElsewhereIsSaidAtOnceAndNothingIsLoaded) {
  std::filesystem::remove(directory.path() / name(1) / "pages-h1" / "pages.log");
  const auto loaded = load(other, {{0, 100}});
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, Errc::unavailable);
  EXPECT_NE(loaded.error().message.find("pages-h1"), std::string::npos) << loaded.error().text();
  EXPECT_TRUE(other.session.store().list(0).empty());
  EXPECT_TRUE(load(other, {{3, 2}})) << "these two lie in the delta";
}

TEST_F(LoadingTest, WrongImagesAreRefused) {
  other.session.want({{}, {"nothing"}});
  EXPECT_EQ(other.session.load(owner, {"nothing"}).error().code, Errc::not_found);
  EXPECT_EQ(other.session.load(owner, {"../image-1"}).error().code, Errc::invalid_argument);
  EXPECT_EQ(other.session.load(owner, {name(2)}).error().code, Errc::conflict) << "a delta without its base";
  EXPECT_EQ(load(other, {{guest_pages - 1, 2}}).error().code, Errc::invalid_argument);
  std::filesystem::resize_file(directory.path() / name(1) / "pages-h1" / "pages.index", 50);
  EXPECT_EQ(load(other, all).error().code, Errc::corrupt);
  EXPECT_TRUE(other.session.store().list(0).empty());
}

TEST_F(LoadingTest, HeldPagesStayAsTheyAreAndRepetitionIsHarmless) {
  other.put({{3, 1234}});
  ASSERT_TRUE(load(other, {{0, 10}}));
  ASSERT_TRUE(load(other, {{0, 10}}));
  while (other.session.bring_in(256)) {}
  Contents all_ten = expected(0, 10);
  all_ten[3] = 1234;
  EXPECT_EQ(other.get({{0, 10}}).value(), all_ten);
}

}  // namespace
}  // namespace yado::pager
