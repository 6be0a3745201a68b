#include "pager/page_store.hpp"

#include <random>
#include <set>
#include <thread>

#include "pager/pager_testing.hpp"

namespace yado::pager {
namespace {

constexpr PageStore::Owner owner{1, 1};

class PageStoreTest : public ::testing::Test {
 protected:
  PageStoreTest() { EXPECT_TRUE(store.take_over(owner)); }

  Status put(const Contents& contents, PageStore::Owner by = owner) {
    const PutBody body = put_body(contents);
    return store.put(by, body.batch());
  }
  Status drop(std::vector<PageRun> runs) { return store.drop(owner, wanted(std::move(runs))); }
  Contents get(std::vector<PageRun> runs) {
    std::vector<std::byte> space(256 * page_bytes);
    auto found = store.get(owner, wanted(std::move(runs)), space);
    EXPECT_TRUE(found) << found.error().text();
    return found ? contents_of(found->runs, found->data) : Contents{};
  }
  Errc put_error(const Contents& contents, PageStore::Owner by = owner) {
    const Status done = put(contents, by);
    return done ? Errc{} : done.error().code;
  }

  PageArena arena{64};
  PageStore store{arena, 100'000, 8};
};

TEST_F(PageStoreTest, GivesBackWhatWasPut) {
  ASSERT_TRUE(put({{3, 30}, {4, 0}, {5, 50}, {99'999, 7}}));
  EXPECT_EQ(get({{2, 5}, {99'999, 1}}), (Contents{{3, 30}, {4, 0}, {5, 50}, {99'999, 7}}));
  ASSERT_TRUE(put({{3, 0}, {4, 41}, {5, 51}}));
  EXPECT_EQ(get({{2, 5}}), (Contents{{3, 0}, {4, 41}, {5, 51}}));
  EXPECT_EQ(store.stats().data_pages, 3u);
  EXPECT_EQ(store.stats().zero_pages, 1u);
}

TEST_F(PageStoreTest, AnAnswerNamesPagesThatAreNotThere) {
  ASSERT_TRUE(put({{3, 30}}));
  std::vector<std::byte> space(3 * page_bytes);
  const auto found = store.get(owner, wanted({{2, 3}}), space);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->runs, (std::vector<KindRun>{{2, 1, PageKind::absent}, {3, 1, PageKind::data}, {4, 1, PageKind::absent}}));
}

TEST_F(PageStoreTest, ZerosSentAsDataCostNothing) {
  std::vector<std::byte> body = make_batch(std::vector<KindRun>{{0, 8, PageKind::data}});
  body.resize(body.size() + 8 * page_bytes);
  ASSERT_TRUE(store.put(owner, *parse_batch(body, BatchUse::put)));
  EXPECT_EQ(store.stats().data_pages, 0u);
  ASSERT_TRUE(put({{10, 1}, {11, 1}, {12, 1}, {13, 1}, {14, 1}, {15, 1}, {16, 1}, {17, 1}}));
}

TEST_F(PageStoreTest, AboveTheQuotaNothingOfABatchIsStored) {
  ASSERT_TRUE(put({{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 6}, {6, 7}}));
  EXPECT_EQ(put_error({{0, 100}, {10, 8}, {11, 9}}), Errc::no_space);
  EXPECT_EQ(get({{0, 1}, {10, 2}}), (Contents{{0, 1}}));
  EXPECT_TRUE(put({{0, 100}, {10, 8}})) << "one more, and an overwritten one, fit";
  EXPECT_EQ(put_error({{11, 9}}), Errc::no_space);
  EXPECT_TRUE(put({{11, 0}})) << "zeros cost nothing";
  EXPECT_TRUE(put({{0, 101}, {1, 102}, {10, 103}})) << "overwriting needs no room";
  ASSERT_TRUE(drop({{0, 2}, {500, 4}}));
  EXPECT_TRUE(put({{11, 9}, {12, 10}}));
  EXPECT_EQ(get({{0, 2}, {10, 3}}), (Contents{{10, 103}, {11, 9}, {12, 10}}));
}

TEST_F(PageStoreTest, TheArenasEndIsNoSpaceAndNothingLeaks) {
  PageStore big(arena, 1000, 1000);
  ASSERT_TRUE(big.take_over(owner));
  for (int round = 0; round < 3; ++round) {
    for (PageNumber page = 0; page < 64; ++page) {
      const PutBody one = put_body({{page, page + 1}});
      ASSERT_TRUE(big.put(owner, one.batch())) << page;
    }
    const PutBody two = put_body({{70, 1}, {71, 2}});
    EXPECT_EQ(big.put(owner, two.batch()).error().code, Errc::no_space);
    ASSERT_TRUE(big.drop(owner, wanted({{0, 1000}})));
  }
  EXPECT_TRUE(put({{0, 1}}));
}

TEST_F(PageStoreTest, AnEarlierOwnerIsFenced) {
  ASSERT_TRUE(put({{1, 1}}));
  ASSERT_TRUE(store.take_over({1, 2}));
  EXPECT_EQ(put_error({{1, 2}}), Errc::stale_epoch);
  EXPECT_EQ(drop({{1, 1}}).error().code, Errc::stale_epoch);
  std::vector<std::byte> space(page_bytes);
  EXPECT_EQ(store.get(owner, wanted({{1, 1}}), space).error().code, Errc::stale_epoch);
  EXPECT_EQ(store.take_over({1, 2}).error().code, Errc::stale_epoch) << "the same again is not greater";
  EXPECT_EQ(store.take_over({0, 9}).error().code, Errc::stale_epoch);
  ASSERT_TRUE(store.take_over({2, 0}));
  EXPECT_TRUE(put({{1, 3}}, {2, 0}));
}

TEST_F(PageStoreTest, PagesOutsideAreRefused) {
  EXPECT_EQ(put_error({{99'999, 1}, {100'000, 1}}), Errc::invalid_argument);
  EXPECT_EQ(drop({{99'999, 2}}).error().code, Errc::invalid_argument);
  std::vector<std::byte> space(2 * page_bytes);
  EXPECT_EQ(store.get(owner, wanted({{99'999, 2}}), space).error().code, Errc::invalid_argument);
  EXPECT_TRUE(store.list(100'000).empty());
  EXPECT_TRUE(store.list(~0ull).empty());
}

TEST_F(PageStoreTest, AListGoesOnWhereTheLastOneStopped) {
  Contents all;
  for (PageNumber page = 0; page < 100'000; page += 10) all[page] = 0;
  for (auto at = all.begin(); at != all.end();) {
    Contents some;
    for (; at != all.end() && some.size() < 256; ++at) some.insert(*at);
    ASSERT_TRUE(put(some));
  }
  Contents listed;
  PageNumber from = 0;
  int lists = 0;
  for (auto runs = store.list(from); !runs.empty(); runs = store.list(from), ++lists) {
    ASSERT_LE(runs.size(), most_runs);
    for (const KindRun& run : runs) listed[run.first] = 0;
    from = runs.back().first + runs.back().pages;
  }
  EXPECT_EQ(lists, 3);
  EXPECT_EQ(listed, all);
}

TEST_F(PageStoreTest, DroppingAHugeRangeLooksAtWhatIsThereOnly) {
  PageStore wide(arena, most_pages, 8);
  ASSERT_TRUE(wide.take_over(owner));
  const PutBody body = put_body({{5, 1}, {most_pages - 1, 2}});
  ASSERT_TRUE(wide.put(owner, body.batch()));
  std::vector<KindRun> everything;
  for (PageNumber first = 0; first < most_pages; first += 1u << 30) everything.push_back({first, 1u << 30, PageKind::wanted});
  ASSERT_TRUE(wide.drop(owner, {everything, {}}));
  EXPECT_TRUE(wide.list(0).empty());
}

TEST_F(PageStoreTest, BehavesLikeAMap) {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    PageStore tried(arena, 30, 16);
    ASSERT_TRUE(tried.take_over(owner));
    std::mt19937 random(seed);
    Contents model;
    for (int step = 0; step < 200; ++step) {
      Contents batch;
      const PageNumber first = random() % 30;
      for (PageNumber page = first; page < std::min<PageNumber>(30, first + 1 + random() % 6); ++page) batch[page] = random() % 4;
      if (random() % 3 == 0) {
        ASSERT_TRUE(tried.drop(owner, wanted({{first, static_cast<std::uint32_t>(batch.size())}})));
        for (const auto& [page, number] : batch) model.erase(page);
      } else {
        Contents after = model;
        for (const auto& [page, number] : batch) after[page] = number;
        const PutBody body = put_body(batch);
        const bool done = tried.put(owner, body.batch()).has_value();
        // A batch is judged by what it is at its most: all its new pages beside all old ones.
        std::uint64_t most = 0;
        for (const auto& [page, number] : model) most += number != 0;
        for (const auto& [page, number] : batch) most += number != 0 && (!model.contains(page) || model[page] == 0);
        ASSERT_EQ(done, most <= 16) << "seed " << seed << " step " << step;
        if (done) model = after;
      }
      std::vector<std::byte> space(30 * page_bytes);
      const auto found = tried.get(owner, wanted({{0, 30}}), space);
      ASSERT_TRUE(found);
      ASSERT_EQ(contents_of(found->runs, found->data), model) << "seed " << seed << " step " << step;
    }
  }
}

TEST_F(PageStoreTest, ThreadsSeeWholePages) {
  PageStore shared(arena, 16, 16);
  ASSERT_TRUE(shared.take_over(owner));
  std::atomic<bool> stop = false;
  std::vector<std::jthread> readers;
  for (int i = 0; i < 2; ++i)
    readers.emplace_back([&] {
      std::vector<std::byte> space(16 * page_bytes);
      while (!stop) {
        const auto found = shared.get(owner, wanted({{0, 16}}), space);
        ASSERT_TRUE(found);
        contents_of(found->runs, found->data);  // says when one is torn
        shared.list(0);
        shared.stats();
      }
    });
  for (std::uint64_t round = 1; round <= 200; ++round) {
    Contents all;
    for (PageNumber page = 0; page < 16; ++page) all[page] = (round + page) % 5 == 0 ? 0 : round;
    const PutBody body = put_body(all);
    ASSERT_TRUE(shared.put(owner, body.batch()));
    ASSERT_TRUE(shared.drop(owner, wanted({{round % 16, 1}})));
  }
  stop = true;
}

TEST(PageArenaTest, EverySlotIsItsOwn) {
  PageArena arena(1500);
  for (int round = 0; round < 2; ++round) {
    std::set<std::byte*> places;
    std::vector<std::uint32_t> slots;
    while (const auto slot = arena.allocate()) {
      slots.push_back(*slot);
      places.insert(arena.at(*slot).data());
      std::memset(arena.at(*slot).data(), 1, page_bytes);
    }
    EXPECT_EQ(slots.size(), 1500u);
    EXPECT_EQ(places.size(), 1500u);
    for (const std::uint32_t slot : slots) arena.release(slot);
  }
}

}  // namespace
}  // namespace yado::pager
