// Living hosts that leave a memory with parity.
#include "pager/parity_testing.hpp"

namespace yado::pager {
namespace {

class ParityLeavingTest : public ParityTest {
 protected:
  /// All of the memory, with zeros.
  void fill() {
    for (PageNumber first = 0; first < 4096; first += 256) {
      Contents some;
      for (PageNumber page = first; page < first + 256; page += 2) some[page] = page % 5 == 0 ? 0 : page + 1;
      ASSERT_TRUE(store(some));
      all.merge(some);
    }
  }
  bool step() {
    bool any = false;
    for (auto& server : hosts->servers) any = server->step(true) || any;
    return any;
  }
  void leave(std::size_t host) {
    left.reset();
    hosts->parity->leave(host, [this](const Status& status) { left = status; });
  }
  /// But for pages that are zero, of an image, of which nothing is known.
  bool is_empty(std::size_t host) const { return hosts->servers[2 * host]->data_pages() + hosts->servers[2 * host + 1]->data_pages() == 0; }
  void expect_all() {
    for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
  }
  Contents all;
  std::optional<Status> left;
};

TEST_F(ParityLeavingTest, NothingIsEverHeldLessOften) {
  for (std::size_t host = 0; host < 4; ++host) {
    make({.hosts = 4});
    all.clear();
    ASSERT_NO_FATAL_FAILURE(fill());
    leave(host);
    while (step()) ASSERT_EQ(hosts->parity->pages_without_redundancy(), 0u);
    ASSERT_TRUE(left && *left) << host;
    EXPECT_TRUE(is_empty(host));
    EXPECT_EQ(hosts->parity->pages_at(host), 0u);
    hosts->check_at_rest();
    kill((host + 1) % 4);
    ASSERT_NO_FATAL_FAILURE(expect_all());
  }
}

TEST_F(ParityLeavingTest, WithNobodyToTakeItsPlaceItStaysAndServes) {
  make({});
  ASSERT_NO_FATAL_FAILURE(fill());
  const std::uint64_t had = hosts->parity->pages_at(1);
  leave(1);
  settle();
  ASSERT_TRUE(left && !*left);
  EXPECT_EQ(left->error().code, Errc::no_space);
  EXPECT_EQ(hosts->parity->pages_at(1), had);
  kill(2);
  ASSERT_NO_FATAL_FAILURE(expect_all());
}

TEST_F(ParityLeavingTest, AHostWithoutRoomTakesNoPlace) {
  make({.hosts = 4, .quota = 300});
  for (PageNumber page = 0; page < 200; ++page) all[page] = page + 1;  // on host 0, which only host 3 can replace in this group
  ASSERT_TRUE(store(all));
  Contents others;
  for (PageNumber page = 3072; page < 3272; ++page) others[page] = page + 1;  // on host 3
  ASSERT_TRUE(store(others));
  all.merge(others);
  leave(0);
  settle();
  ASSERT_TRUE(left && !*left);
  EXPECT_EQ(left->error().code, Errc::no_space);
  kill(1);
  ASSERT_NO_FATAL_FAILURE(expect_all());
}

TEST_F(ParityLeavingTest, WhatItHasFromAnImageGoesIntoStripesOnOthers) {
  make({.hosts = 4, .restored = true});
  all = hosts->loaded();
  leave(2);
  settle();
  ASSERT_TRUE(left && *left);
  EXPECT_TRUE(is_empty(2));
  EXPECT_EQ(hosts->parity->pages_without_redundancy(), 0u);
  kill(0);
  ASSERT_NO_FATAL_FAILURE(expect_all());
}

TEST_F(ParityLeavingTest, WhatOfItIsInTheMemoryFileNeedNotGoAnywhere) {
  make({.hosts = 4, .restored = true});
  std::vector<PageNumber> of_it;
  for (const auto& [page, number] : hosts->loaded())
    if (number != 0 && hosts->parity->owner(page) == 2u && of_it.size() < most_data_pages) of_it.push_back(page);
  hosts->parity->fetch(of_it, [](const Result<Piece>& piece) { EXPECT_TRUE(piece); });
  settle();
  leave(2);
  settle();
  ASSERT_TRUE(left && *left);
  EXPECT_TRUE(is_empty(2));
}

TEST_F(ParityLeavingTest, WhoStaysAfterAllIsUsedAgain) {
  make({.hosts = 4});
  ASSERT_NO_FATAL_FAILURE(fill());
  leave(1);
  for (int i = 0; i < 5; ++i) step();
  hosts->parity->stay(1);
  settle();
  EXPECT_FALSE(left);
  EXPECT_GT(hosts->parity->pages_at(1), 0u);
  kill(3);  // whose places it may take
  EXPECT_EQ(hosts->parity->pages_without_redundancy(), 0u);
  kill(1);
  ASSERT_NO_FATAL_FAILURE(expect_all());
}

TEST_F(ParityLeavingTest, ADeathInTheMiddleLosesNothing) {
  for (int steps = 1; steps < 60; steps += 3)
    for (const std::size_t dead : {0u, 1u, 2u, 3u}) {
      SCOPED_TRACE(fmt::format("{} dies after {} steps", dead, steps));
      make({.hosts = 4});
      all.clear();
      ASSERT_NO_FATAL_FAILURE(fill());
      leave(1);
      for (int i = 0; i < steps; ++i) step();
      hosts->kill(dead);
      settle();
      ASSERT_TRUE(left);
      EXPECT_EQ(left->has_value(), dead == 1 || is_empty(1));
      ASSERT_NO_FATAL_FAILURE(expect_all());
      const bool three_are_left = dead == 1 || !*left;
      EXPECT_TRUE(!three_are_left || hosts->parity->pages_without_redundancy() == 0);
    }
}

/// One after the other comes, and another one leaves; some stay after all.
class ChangingHosts : public ParityHosts {
 public:
  explicit ChangingHosts(const Shape& shape) : ParityHosts(shape) {}
  void change(unsigned random) override {
    if (leaving_ && random % 3 == 0) {
      parity->stay(*leaving_);
      leaving_.reset();
    }
    if (leaving_) return;
    const std::size_t host = any_alive(random);
    if (gone_.contains(host)) return;
    for (std::size_t i = 0; i < shape_.hosts; ++i) {
      if (servers[2 * i]->alive() && !gone_.contains(i)) continue;
      if (servers[2 * i]->busy() || servers[2 * i + 1]->busy()) break;  // its session has not ended yet
      for (const std::size_t one : {2 * i, 2 * i + 1}) {
        buried_.push_back(std::move(servers[one]));
        servers[one] = std::make_unique<FakeServer>(buried_.back()->name(), buried_.back()->quota_pages());
      }
      deaths -= !gone_.contains(i);
      gone_.erase(i);
      EXPECT_EQ(parity->add_server(servers[2 * i].get(), servers[2 * i + 1].get()).value(), i);
      break;
    }
    leaving_ = host;
    parity->leave(host, [this, host](const Status& status) {
      leaving_.reset();
      if (!status || !servers[2 * host]->alive()) return;
      gone_.insert(host);
      ++left;
    });
  }
  bool can_lose_another() const override { return gone_.empty() && !leaving_ && ParityHosts::can_lose_another(); }
  unsigned left = 0;

 private:
  std::optional<std::size_t> leaving_;
  std::set<std::size_t> gone_;
};

TEST(ParityLeavingSimulationTest, HostsThatComeAndGoLoseNothing) {
  unsigned left = 0;
  for (unsigned seed = 0; seed < 80; ++seed) {
    Simulation simulation({.seed = seed, .deaths = seed % 2, .changes = 40}, std::make_unique<ChangingHosts>(Shape{.hosts = 4 + seed % 2, .restored = seed % 3 == 0}));
    ASSERT_TRUE(simulation.run() || seed % 2 == 1) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
    left += static_cast<ChangingHosts&>(simulation.hosts()).left;
  }
  EXPECT_GT(left, 80u) << "the test did nothing";
}

}  // namespace
}  // namespace yado::pager
