#include "pager/copies_testing.hpp"

namespace yado::pager {
namespace {

// ---- one thing at a time ---------------------------------------------------------------------------------------------

class CopiesTest : public CopiesFixture {};

TEST_F(CopiesTest, AtFirstEveryPageIsZeroAndNobodyIsAsked) {
  make(2, 1);
  bool inside = false;
  remote->fetch({3, 4}, [&](const Result<Piece>& piece) { inside = piece && contents_of_piece(*piece) == Contents{{3, 0}, {4, 0}}; });
  EXPECT_TRUE(inside);
  EXPECT_FALSE(servers[0]->busy() || servers[1]->busy());
}

TEST_F(CopiesTest, APageIsStoredWhenAllItsServersHaveIt) {
  make(3, 2);
  int stored = 0;
  remote->store(evicted({{1, 1}, {2, 2}, {600, 6}}), [&](const Status& status) { stored += status.has_value(); });
  while (servers[0]->step(true) || servers[1]->step(true)) {}
  EXPECT_EQ(stored, 0) << "600 is in another region, whose second server has not answered";
  settle();
  EXPECT_EQ(stored, 1);
  EXPECT_EQ(remote->pages_at(0) + remote->pages_at(1) + remote->pages_at(2), 6u);
  EXPECT_EQ(fetch({1, 2, 600}).value(), (Contents{{1, 1}, {2, 2}, {600, 6}}));
}

TEST_F(CopiesTest, EvictingAPageUnchangedSendsNothing) {
  make(2, 2);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 0}}));
  ASSERT_TRUE(fetch({1, 2, 3}));
  const std::uint64_t before = remote->counts().pages_sent;
  ASSERT_TRUE(store({{1, 1}, {2, 22}, {3, 0}}));
  EXPECT_EQ(remote->counts().pages_sent - before, 2u) << "page 2, to both";
  EXPECT_EQ(remote->counts().pages_clean, 3u) << "page 3 twice: it was zero before";
  EXPECT_EQ(fetch({1, 2, 3}).value(), (Contents{{1, 1}, {2, 22}, {3, 0}}));
}

TEST_F(CopiesTest, WhatIsUnchangedSinceTheLastCutIsSentAsSuch) {
  make(1, 1);
  Evicted both = evicted({{1, 1}, {2, 2}, {3, 3}});
  both.unchanged = {true, false, true};
  remote->store(std::move(both), [](const Status& status) { EXPECT_TRUE(status); });
  settle();
  EXPECT_EQ(servers[0]->held, (Contents{{1, 1}, {2, 2}, {3, 3}}));
  EXPECT_EQ(servers[0]->unchanged, (std::set<PageNumber>{1, 3}));
}

TEST_F(CopiesTest, AnAdoptedPageIsCleanOnceItWasSeen) {
  make(1, 1);
  servers[0]->held = {{5, 50}, {6, 0}};
  remote->adopt(std::vector<KindRun>{{5, 1, PageKind::data}, {6, 1, PageKind::zero}}, 0);
  ASSERT_EQ(fetch({5, 6}).value(), (Contents{{5, 50}, {6, 0}}));
  ASSERT_TRUE(store({{5, 50}, {6, 0}}));
  EXPECT_EQ(remote->counts().pages_sent, 0u);
}

TEST_F(CopiesTest, APageThatCameAfterTheCutIsItsServersAtTheCut) {
  make(1, 1);
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  PageBits here(4096);
  ASSERT_TRUE(fetch({1}));
  here.set(PageNumber{1});
  ASSERT_TRUE(fetch({2}));  // on its way when the guest stood still
  remote->at_cut(here);
  EXPECT_EQ(remote->owner(1), std::nullopt);
  EXPECT_EQ(remote->owner(2), 0u);
  settle();
  EXPECT_EQ(servers[0]->held, (Contents{{2, 2}}));
}

TEST_F(CopiesTest, AZeroPageTakesNoRoom) {
  make(1, 1);
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  ASSERT_TRUE(fetch({1, 2}));
  ASSERT_TRUE(store({{1, 0}, {2, 2}}));
  EXPECT_EQ(servers[0]->held, (Contents{{2, 2}}));
  EXPECT_EQ(remote->pages_at(0), 1u);
}

TEST_F(CopiesTest, ADeadServersPagesComeFromTheOtherAndAreCopiedAgain) {
  make(3, 2);
  Contents all;
  for (PageNumber page = 0; page < 2000; page += 9) all[page] = page + 1;
  for (auto at = all.begin(); at != all.end();) {
    Contents some;
    for (; at != all.end() && some.size() < 60; ++at) some.insert(*at);
    ASSERT_TRUE(store(some));
  }
  EXPECT_EQ(remote->pages_without_redundancy(), 0u);
  servers[1]->die([&] { remote->server_died(1); });
  EXPECT_GT(remote->pages_without_redundancy(), 0u);
  settle();
  EXPECT_EQ(remote->pages_without_redundancy(), 0u);
  EXPECT_FALSE(remote->rebuilding());
  kill(0);
  for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, ANewServerGetsAtOnceWhatIsMissing) {
  make(2, 2);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {600, 3}}));
  EXPECT_TRUE(remote->can_do_without(0));
  kill(0);
  EXPECT_EQ(remote->pages_without_redundancy(), 3u);
  EXPECT_FALSE(remote->can_do_without(1));
  FakeServer another("another", 1000);
  EXPECT_EQ(remote->add_server(&another).value(), 0u);
  while (another.step(true) || servers[1]->step(true)) {}
  EXPECT_EQ(remote->pages_without_redundancy(), 0u) << "nobody touched the memory meanwhile";
  EXPECT_EQ(another.held, (Contents{{1, 1}, {2, 2}, {600, 3}}));
  EXPECT_TRUE(remote->can_do_without(1));
}

TEST_F(CopiesTest, WhatAllItsServersLostIsLostAndSaysSo) {
  make(2, 1);
  ASSERT_TRUE(store({{1, 1}, {600, 6}}));
  kill(0);
  EXPECT_TRUE(remote->lost(1));
  EXPECT_FALSE(remote->lost(600));
  EXPECT_NE(fetch({1}).error().message.find("page 1 is lost"), std::string::npos);
  EXPECT_EQ(fetch({600}).value(), (Contents{{600, 6}}));
  ASSERT_TRUE(store({{2, 2}})) << "new ones go to who lives";
  kill(1);
  EXPECT_EQ(store({{3, 3}}).error().code, Errc::no_space);
}

TEST_F(CopiesTest, AWrongContentIsNeverGivenOn) {
  make(2, 2);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 3}}));
  servers[0]->held[1] = 99;
  servers[0]->held[2] = 0;
  servers[0]->held.erase(3);
  EXPECT_EQ(fetch({1, 2, 3}).value(), (Contents{{1, 1}, {2, 2}, {3, 3}}));
  EXPECT_EQ(remote->counts().wrong_contents, 3u);
}

TEST_F(CopiesTest, OneBadPageDoesNotTakeItsNeighboursAlong) {
  make(1, 1);
  Contents all;
  for (PageNumber page = 0; page < 20; ++page) all[page] = page + 1;
  ASSERT_TRUE(store(all));
  servers[0]->refuses = [](const std::vector<PageRun>& runs) {
    return std::ranges::any_of(runs, [](const PageRun& run) { return run.first <= 13 && 13 < run.first + run.pages; });
  };
  EXPECT_FALSE(fetch({12, 13, 14}));
  all.erase(13);
  for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, DuplicatesMakeRoomForWhatMustBeRemote) {
  make(1, 1, 100);
  Contents remote_ones;
  for (PageNumber page = 0; page < 100; ++page) remote_ones[page] = page + 1;
  ASSERT_TRUE(store(remote_ones));
  EXPECT_EQ(servers[0]->data_pages(), 100u);
  // A page comes, another one goes: for ever, with a quota that just fits what is remote.
  std::mt19937 random(1);
  PageNumber next = 100;
  for (int i = 0; i < 500; ++i) {
    auto chosen = remote_ones.begin();
    std::advance(chosen, random() % remote_ones.size());
    const auto [page, number] = *chosen;
    ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
    remote_ones.erase(chosen);
    ASSERT_TRUE(store({{next, next + 1}})) << i;
    remote_ones[next] = next + 1;
    next = next == 1999 ? 0 : next + 1;
    while (remote_ones.contains(next)) ++next;
  }
  EXPECT_GT(remote->counts().duplicates_dropped, 0u);
  for (const auto& [page, number] : remote_ones) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, AnEvictionThatWasUndoneTakesNoRoomForEver) {
  make(1, 1, 3);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 3}}));
  remote->kept(std::vector<PageNumber>{2});
  ASSERT_TRUE(store({{4, 4}}));
  EXPECT_EQ(servers[0]->held, (Contents{{1, 1}, {3, 3}, {4, 4}}));
  EXPECT_EQ(store({{5, 5}}).error().code, Errc::no_space);
}

TEST_F(CopiesTest, AFullServersShareGoesToTheOthers) {
  make(3, 1, 10);
  Contents all;
  for (PageNumber page = 0; page < 30; ++page) all[page] = page + 1;
  ASSERT_TRUE(store(all)) << "one region, whose first server takes ten";
  for (const auto& server : servers) EXPECT_EQ(server->data_pages(), 10u);
  EXPECT_EQ(store({{40, 1}}).error().code, Errc::no_space);
  EXPECT_EQ(servers[0]->puts + servers[1]->puts + servers[2]->puts, 3u) << "what cannot fit is not sent";
}

TEST_F(CopiesTest, AnImageOnADiskGivesAndTakesNothing) {
  make(2, 1);
  servers[1]->takes_pages = false;
  servers[1]->held = {{1, 1}, {2, 2}};
  remote->adopt(std::vector<KindRun>{{1, 2, PageKind::data}}, 1);
  ASSERT_EQ(fetch({1, 2}).value(), (Contents{{1, 1}, {2, 2}}));
  ASSERT_TRUE(store({{1, 1}, {2, 22}}));
  EXPECT_EQ(servers[1]->held, (Contents{{1, 1}, {2, 2}}));
  EXPECT_EQ(servers[0]->held, (Contents{{2, 22}}));
  EXPECT_EQ(fetch({1, 2}).value(), (Contents{{1, 1}, {2, 22}}));
}

TEST_F(CopiesTest, OfTwoStoresUnderWayTheLaterCounts) {
  make(3, 2);
  int stored = 0;
  const auto done = [&](const Status& status) { stored += status.has_value(); };
  remote->store(evicted({{1, 1}}), done);
  servers[0]->step(false);
  remote->store(evicted({{1, 2}}), done);
  remote->store(evicted({{1, 0}}), done);
  remote->store(evicted({{1, 3}}), done);
  settle();
  EXPECT_EQ(stored, 4);
  EXPECT_EQ(fetch({1}).value(), (Contents{{1, 3}}));
  kill(0);
  EXPECT_EQ(fetch({1}).value(), (Contents{{1, 3}}));
}

// ---- everything at once ----------------------------------------------------------------------------------------------

class StayingHosts : public CopiesHosts {
 public:
  using CopiesHosts::CopiesHosts;
  void kill(std::size_t host) override {
    if (servers[host]->alive()) servers[host]->die([&] { copies->server_died(host); });
  }
  void check_at_rest() override {
    EXPECT_FALSE(copies->rebuilding());
    for (std::size_t i = 0; i < servers.size(); ++i)
      EXPECT_TRUE(!servers[i]->alive() || copies->pages_at(i) == servers[i]->data_pages()) << "they differ about server " << i;
  }
  bool can_lose_another() const override {
    const auto living = std::ranges::count_if(servers, [](const auto& server) { return server->alive(); });
    return shape_.copies == 2 && living >= 2 && shape_.quota >= Simulation::pages;
  }
  bool may_be_lost(PageNumber page, std::uint64_t content) const override {
    return std::ranges::none_of(servers, [&](const auto& server) {
      const auto found = server->held.find(page);
      const auto waits = server->unacknowledged.find(page);
      return server->alive() && found != server->held.end() && found->second == content &&
             (waits == server->unacknowledged.end() || waits->second == 0);
    });
  }
};

Simulation simulate(const Simulation::Plan& plan, const CopiesHosts::Shape& shape) { return {plan, std::make_unique<StayingHosts>(shape)}; }
const Copies::Counts& counts(Simulation& simulation) { return static_cast<CopiesHosts&>(simulation.hosts()).copies->counts(); }

class CopiesSimulationTest : public ::testing::Test {};

TEST_F(CopiesSimulationTest, WithoutFaultsNothingIsLostWhateverTheDelays) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation = simulate({.seed = seed}, {.servers = 1 + seed % 4, .copies = 1 + seed % 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ASSERT_EQ(simulation.failed_stores(), 0u);
    ASSERT_GT(counts(simulation).pages_clean, 0u);
  }
}

TEST_F(CopiesSimulationTest, AQuotaThatJustFitsIsEnough) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const unsigned servers = 1 + seed % 4;
    constexpr std::uint64_t must_be_remote = 130 - Simulation::kept_local + Simulation::most_evicted;
    Simulation simulation = simulate({.seed = seed, .used_pages = 130, .zeros_of_100 = 1},
                                     {.servers = servers, .quota = (must_be_remote + servers - 1) / servers});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ASSERT_EQ(simulation.failed_stores(), 0u) << "seed " << seed;
    ASSERT_GT(counts(simulation).duplicates_dropped, 0u) << "there was no need";
  }
}

TEST_F(CopiesSimulationTest, AReplicaSurvivesDeathsAndIsRebuilt) {
  unsigned lost = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 1 + seed % 2}, {.servers = 3 + seed % 3, .copies = 2});
    lost += !simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_LT(lost, 30u);
}

TEST_F(CopiesSimulationTest, OneDeathNeverLosesAReplicatedPage) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 1}, {.servers = 3 + seed % 3, .copies = 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(CopiesSimulationTest, WhoeverCanBeDoneWithoutIsNotMissed) {
  unsigned given_up = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    const unsigned servers = 2 + seed % 3;
    Simulation simulation = simulate({.seed = seed, .give_ups = servers - 1}, {.servers = servers, .copies = seed % 4 == 0 ? 1U : 2U});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    given_up += servers - 1 - simulation.give_ups_left();
  }
  EXPECT_GT(given_up, 40u) << "the test did nothing";
}

TEST_F(CopiesSimulationTest, WithoutReplicasOnlyWhatTheDeadHeldIsLost) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 1}, {.servers = 2 + seed % 3});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(CopiesSimulationTest, HarmedPagesAreNeverTakenForRight) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = seed % 2, .harm_of_1000 = 300}, {.servers = 2 + seed % 3, .copies = 1 + seed % 2});
    simulation.run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(CopiesSimulationTest, ReplicasWithLittleRoom) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = seed % 2}, {.servers = 3 + seed % 2, .copies = 2, .quota = 60 + seed});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace yado::pager
