// Pages that only the parity has, in an image.
#include "pager/parity_testing.hpp"

namespace yado::pager {
namespace {

class ParityImageTest : public ParityTest {
 protected:
  /// The next piece; nothing: none was given yet.
  std::optional<Result<Contents>> read_some() {
    auto got = std::make_shared<std::optional<Result<Contents>>>();
    hosts->parity->read_held([got](const Result<Piece>& piece) { *got = piece ? Result<Contents>(contents_of_piece(*piece)) : std::unexpected(piece.error()); });
    settle();
    return *got;
  }
  Contents read_all() {
    Contents all;
    for (;;) {
      auto some = read_some();
      EXPECT_TRUE(some && *some) << (some ? some->error().text() : "nothing came");
      if (!some || !*some || (*some)->empty()) return all;
      all.merge(**some);
    }
  }
};

TEST_F(ParityImageTest, ItIsAsItWasAtTheCutWhateverIsStoredSince) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 3}, {513, 51}, {514, 52}}));
  kill(0);
  for (const PageNumber page : {1, 2, 3}) EXPECT_TRUE(hosts->parity->is_computed(page));
  EXPECT_FALSE(hosts->parity->is_computed(513)) << "a host has it";
  EXPECT_FALSE(hosts->parity->is_computed(7)) << "zero";
  hosts->parity->hold_for_image({1, 2, 3});
  ASSERT_TRUE(store({{1, 11}, {2, 0}, {513, 510}}));
  ASSERT_TRUE(store({{1, 111}}));
  EXPECT_EQ(read_all(), (Contents{{1, 1}, {2, 2}, {3, 3}}));
  EXPECT_EQ(read_all(), Contents()) << "each once";
  EXPECT_EQ(fetch({1, 2, 3, 513}).value(), (Contents{{1, 111}, {2, 0}, {3, 3}, {513, 510}}));
}

TEST_F(ParityImageTest, WhatWasPutOnAHostMeanwhileIsReadThere) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  kill(0);
  hosts->parity->hold_for_image({1, 2});
  hosts->change(0);
  settle();
  EXPECT_EQ(hosts->parity->owner(1), 0u);
  EXPECT_EQ(read_all(), (Contents{{1, 1}, {2, 2}}));
}

TEST_F(ParityImageTest, PagesOfManyGroupsComePieceByPiece) {
  make({});
  Contents all;
  for (PageNumber first = 0; first < 4096; first += 256) {
    Contents some;
    for (PageNumber page = first; page < first + 256; ++page) some[page] = page + 1;
    ASSERT_TRUE(store(some));
    all.merge(some);
  }
  kill(1);
  std::erase_if(all, [&](const auto& page) { return !hosts->parity->is_computed(page.first); });
  ASSERT_GT(all.size(), 1000u);
  std::vector<PageNumber> pages;
  for (const auto& [page, number] : all) pages.push_back(page);
  hosts->parity->hold_for_image(pages);
  EXPECT_EQ(read_all(), all);
}

TEST_F(ParityImageTest, WhatIsSetAsideInMemoryIsBounded) {
  make({.most_held = 2});
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 3}, {4, 4}}));
  kill(0);
  hosts->parity->hold_for_image({1, 2, 3, 4});
  ASSERT_TRUE(store({{1, 11}, {2, 22}}));
  std::optional<Status> third;
  hosts->parity->store(evicted({{3, 33}}), [&](const Status& status) { third = status; });
  settle();
  EXPECT_FALSE(third) << "nobody has taken the first two";
  EXPECT_EQ(read_some().value().value(), (Contents{{1, 1}, {2, 2}}));
  EXPECT_TRUE(third && *third);
  EXPECT_EQ(read_all(), (Contents{{3, 3}, {4, 4}}));
  EXPECT_EQ(fetch({1, 2, 3, 4}).value(), (Contents{{1, 11}, {2, 22}, {3, 33}, {4, 4}}));
}

TEST_F(ParityImageTest, AnImageThatIsNotWantedAnyMoreHoldsNobodyUp) {
  make({.most_held = 0});
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  kill(0);
  hosts->parity->hold_for_image({1, 2});
  std::optional<Status> stored;
  hosts->parity->store(evicted({{1, 11}}), [&](const Status& status) { stored = status; });
  settle();
  EXPECT_FALSE(stored);
  std::optional<Error> why;
  hosts->parity->read_held([&](const Result<Piece>& piece) { why = piece.error(); });
  hosts->parity->release_held();
  settle();
  EXPECT_TRUE(stored && *stored);
  EXPECT_EQ(why.value().code, Errc::canceled);
  EXPECT_EQ(read_all(), Contents());
  EXPECT_EQ(fetch({1, 2}).value(), (Contents{{1, 11}, {2, 2}}));
}

TEST_F(ParityImageTest, AnotherLossEndsIt) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {513, 2}}));
  kill(0);
  hosts->parity->hold_for_image({1});
  kill(1);
  const auto read = read_some();
  ASSERT_TRUE(read && !*read);
  EXPECT_EQ(read->error().code, Errc::unavailable);
  EXPECT_NE(read->error().message.find("page 1 is lost"), std::string::npos) << read->error().text();
}

/// Takes an image now and then: who has which page is asked at once, as at a cut; what is computed is read later.
class SavedHosts : public ParityHosts {
 public:
  explicit SavedHosts(const Shape& shape) : ParityHosts(shape) {}
  bool step(unsigned random) override {
    if (!under_way_) {
      if (random % 40 != 0) return false;
      cut();
      return true;
    }
    if (asked_) return false;
    asked_ = true;
    parity->read_held([this](const Result<Piece>& piece) {
      asked_ = false;
      if (!piece) {
        EXPECT_TRUE(deaths > 1 || at_a_bad_time) << piece.error().text();
        parity->release_held();
        under_way_ = false;
        return;
      }
      for (const auto& [page, number] : contents_of_piece(*piece)) {
        EXPECT_EQ(number, expected_.at(page)) << "page " << page;
        expected_.erase(page);
        ++computed;
      }
      if (!piece->pages.empty()) return;
      EXPECT_TRUE(expected_.empty());
      under_way_ = false;
      ++images;
    });
    return true;
  }
  unsigned computed = 0, images = 0;

 private:
  void cut() {
    std::vector<PageNumber> held;
    expected_.clear();
    for (const auto& [page, number] : remote_contents()) {
      if (const auto owner = parity->owner(page)) {
        const auto& its = servers[2 * *owner]->held;
        EXPECT_TRUE(its.contains(page) && its.at(page) == number) << "page " << page << " is not what host " << *owner << " would save";
      } else if (parity->is_zero(page)) {
        EXPECT_EQ(number, 0u) << "page " << page;
      } else if (parity->is_computed(page)) {
        held.push_back(page);
        expected_[page] = number;
      } else {
        EXPECT_TRUE(deaths > 1 || at_a_bad_time) << "nobody has page " << page;
      }
    }
    parity->hold_for_image(held);
    under_way_ = true;
  }
  Contents expected_;
  bool under_way_ = false, asked_ = false;
};

TEST(ParityImageSimulationTest, ImagesBetweenALossAndItsReplacementAreOfTheirCut) {
  unsigned computed = 0, images = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation({.seed = seed, .deaths = 1 + seed % 3 / 2, .changes = seed % 2 * 5},
                          std::make_unique<SavedHosts>(Shape{.hosts = 3 + seed % 2, .most_held = seed % 5 == 0 ? 3u : 1000u, .restored = seed % 3 == 0}));
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
    const auto& hosts = static_cast<SavedHosts&>(simulation.hosts());
    computed += hosts.computed;
    images += hosts.images;
  }
  EXPECT_GT(images, 100u);
  EXPECT_GT(computed, 300u) << "the test did nothing";
}

}  // namespace
}  // namespace yado::pager
