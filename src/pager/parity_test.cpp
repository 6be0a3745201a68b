#include "pager/parity_testing.hpp"

namespace yado::pager {
namespace {

TEST_F(ParityTest, OneParityForSeveralPages) {
  make({.hosts = 4, .data = 3});
  ASSERT_TRUE(store({{1, 1}, {513, 2}, {1025, 3}, {7, 0}}));
  EXPECT_EQ(parity_pages(), 1u) << "of the stripe 1, 513, 1025";
  EXPECT_EQ(hosts->parity->pages_without_redundancy(), 0u);
  EXPECT_EQ(fetch({1, 7, 513, 1025}).value(), (Contents{{1, 1}, {7, 0}, {513, 2}, {1025, 3}}));
  ASSERT_TRUE(store({{1, 0}, {513, 0}, {1025, 0}}));
  EXPECT_EQ(parity_pages(), 0u) << "what is empty costs nothing";
  for (const auto& server : hosts->servers) EXPECT_TRUE(server->held.empty());
}

TEST_F(ParityTest, AnUnchangedPageIsNotSent) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  ASSERT_TRUE(fetch({1, 2}));
  const std::uint64_t before = hosts->parity->counts().pages_sent;
  ASSERT_TRUE(store({{1, 1}, {2, 22}}));
  EXPECT_EQ(hosts->parity->counts().pages_sent - before, 2u) << "page 2 and its parity";
  EXPECT_EQ(fetch({1, 2}).value(), (Contents{{1, 1}, {2, 22}}));
}

TEST_F(ParityTest, AnyHostMayDieAndAnotherTakesItsPlace) {
  for (std::size_t dead = 0; dead < 4; ++dead) {
    make({.hosts = 4, .data = 2});
    Contents all;
    for (PageNumber first = 0; first < 4096; first += 512) {
      Contents some;
      for (PageNumber page = first; page < first + 512; page += 5) some[page] = page % 3 == 0 ? 0 : page + 1;
      ASSERT_TRUE(store(some));
      all.merge(some);
    }
    hosts->kill(dead);
    EXPECT_GT(hosts->parity->pages_without_redundancy(), 0u);
    settle();
    EXPECT_EQ(hosts->parity->pages_without_redundancy(), 0u);
    kill((dead + 1) % 4);
    for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}})) << "dead " << dead;
  }
}

TEST_F(ParityTest, WithNobodyToTakeItsPlaceItGoesOn) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {513, 2}, {2, 3}, {1024, 4}}));
  kill(0);  // has 1, 2 and the parity of another group
  ASSERT_TRUE(store({{1, 11}, {514, 5}, {3, 6}, {1025, 7}}));
  EXPECT_EQ(fetch({1, 2, 3, 513, 514, 1024, 1025}).value(),
            (Contents{{1, 11}, {2, 3}, {3, 6}, {513, 2}, {514, 5}, {1024, 4}, {1025, 7}}));
  ASSERT_TRUE(store({{513, 20}, {2, 0}}));
  EXPECT_EQ(fetch({1, 2, 513}).value(), (Contents{{1, 11}, {2, 0}, {513, 20}}));
  EXPECT_FALSE(hosts->parity->repairing());
}

TEST_F(ParityTest, AWrongContentIsComputedInstead) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {513, 2}}));
  hosts->servers[0]->held[1] = 99;
  EXPECT_EQ(fetch({1}).value(), (Contents{{1, 1}}));
  EXPECT_EQ(hosts->parity->counts().wrong_contents, 1u);
  EXPECT_EQ(hosts->servers[0]->held[1], 1u) << "and put right";
  hosts->servers[0]->held.erase(1);
  ASSERT_TRUE(store({{1, 5}})) << "the old content is gone, so it is computed from the others";
  kill(1);
  EXPECT_EQ(fetch({1, 513}).value(), (Contents{{1, 5}, {513, 2}}));
}

TEST_F(ParityTest, TwoDeathsAtOnceAreALossAndSaySo) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {513, 2}}));
  hosts->kill(0);
  hosts->kill(1);
  settle();
  EXPECT_TRUE(hosts->parity->lost(1));
  EXPECT_NE(fetch({1}).error().message.find("page 1 is lost"), std::string::npos);
  EXPECT_FALSE(store({{1, 1}}));
}

TEST_F(ParityTest, DuplicatesMakeRoom) {
  make({.quota = 10});
  Contents ten, next;
  for (PageNumber page = 0; page < 10; ++page) ten[page] = page + 1, next[page + 20] = page + 100;
  ASSERT_TRUE(store(ten));
  EXPECT_EQ(store({{11, 1}}).error().code, Errc::no_space);
  ASSERT_TRUE(fetch({0, 1, 2}));
  ASSERT_TRUE(store({{11, 1}, {12, 2}, {13, 3}}));
  EXPECT_EQ(hosts->parity->counts().duplicates_dropped, 3u);
  EXPECT_EQ(store({{14, 1}}).error().code, Errc::no_space);
  kill(0);
  EXPECT_EQ(fetch({3, 11, 12, 13}).value(), (Contents{{3, 4}, {11, 1}, {12, 2}, {13, 3}}));
}

TEST_F(ParityTest, WhatServersHaveLoadedIsTakenIntoStripes) {
  make({.hosts = 4, .data = 2, .restored = true});
  const Contents all = hosts->loaded();
  EXPECT_GT(hosts->parity->pages_without_redundancy(), 0u);
  EXPECT_EQ(fetch({1, 2, 4}).value(), (Contents{{1, all.at(1)}, {2, all.at(2)}, {4, all.at(4)}})) << "before that, too";
  settle();
  EXPECT_EQ(hosts->parity->pages_without_redundancy(), 0u);
  EXPECT_FALSE(hosts->parity->repairing());
  kill(2);
  std::uint64_t data = 0;
  for (const auto& [page, number] : all) {
    ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
    data += number != 0;
  }
  EXPECT_GT(data, 1000u);
  for (const auto& [page, number] : all) ASSERT_TRUE(store({{page, number}}));
  EXPECT_GT(hosts->servers.back()->data_pages(), 100u) << "what did not change stays in the image";
  for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(!hosts->servers[2 * i]->alive() || hosts->parity->pages_at(i) == hosts->servers[2 * i]->data_pages() + hosts->servers[2 * i + 1]->data_pages()) << i;
}

TEST_F(ParityTest, AnImageIsAskedForWhatNobodyElseHasAndDoesNotDieWithAHost) {
  make({.restored = true});
  std::optional<PageNumber> in_image;
  for (const auto& [page, number] : hosts->loaded())
    if (number != 0 && hosts->servers.back()->held.contains(page)) in_image = page;
  ASSERT_TRUE(in_image);
  kill(0);
  EXPECT_EQ(hosts->parity->owner(*in_image), 3u);
  EXPECT_EQ(fetch({*in_image}).value(), (Contents{{*in_image, hosts->loaded().at(*in_image)}}));
  ASSERT_TRUE(store({{*in_image, 77777}}));
  EXPECT_NE(hosts->parity->owner(*in_image), 3u);
  EXPECT_EQ(fetch({*in_image}).value(), (Contents{{*in_image, 77777}}));
}

TEST_F(ParityTest, WhatIsInAnImageGoesToHostsWhenItShallBeHadFromElsewhere) {
  make({.hosts = 4, .restored = true});
  settle();
  const auto in_image = [&] {
    return std::ranges::count_if(hosts->loaded(), [&](const auto& page) { return hosts->parity->is_on_no_server(page.first); });
  };
  ASSERT_GT(in_image(), 500);
  hosts->parity->leave_images(true);
  bool done = false;
  hosts->parity->when_rebuilt([&] { done = true; });
  EXPECT_FALSE(done);
  settle();
  EXPECT_TRUE(done);
  EXPECT_EQ(in_image(), 0);
  for (const auto& [page, number] : hosts->loaded())
    ASSERT_TRUE(number == 0 || hosts->servers[2 * hosts->parity->owner(page).value()]->held.at(page) == number) << page;
  EXPECT_EQ(hosts->parity->pages_without_redundancy(), 0u);
  kill(1);
  for (const auto& [page, number] : hosts->loaded()) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(ParityTest, WhatIsUnchangedInAnImageIsSentWhenItShallBeHadFromElsewhere) {
  make({.restored = true});
  settle();
  const Contents loaded = hosts->loaded();
  const auto in_image = *std::ranges::find_if(loaded, [&](const auto& page) { return hosts->parity->is_on_no_server(page.first); });
  ASSERT_TRUE(fetch({in_image.first})) << "it is in the memory file, so nobody takes it in";
  hosts->parity->leave_images(true);
  settle();
  ASSERT_TRUE(hosts->parity->is_on_no_server(in_image.first));
  ASSERT_TRUE(store({in_image}));
  EXPECT_FALSE(hosts->parity->is_on_no_server(in_image.first));
}

TEST_F(ParityTest, ItSaysWhenNoStoreWaitsAnyMore) {
  make({});
  bool told = false;
  hosts->parity->when_sent([&] { told = true; });
  EXPECT_TRUE(told);
  bool stored = false;
  hosts->parity->store(evicted({{1, 1}, {1025, 2}}), [&](const Status&) { stored = true; });
  hosts->parity->when_sent([&] { EXPECT_TRUE(stored); told = false; });
  EXPECT_TRUE(told);
  settle();
  EXPECT_FALSE(told);
}

TEST_F(ParityTest, WhatBecomesAgainWhatItWasBeforeACutIsSentAgain) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  ASSERT_TRUE(fetch({1, 2}));  // 1 is 5 at the cut
  PageBits here(4096);
  here.set({1, 1});
  hosts->parity->at_cut(here);
  const std::uint64_t before = hosts->servers[0]->puts;
  ASSERT_TRUE(store({{1, 1}}));
  EXPECT_EQ(hosts->servers[0]->puts, before + 1) << "its host counts 1 as older than the cut, and would not save it";
  ASSERT_TRUE(store({{1, 1}}));
  EXPECT_EQ(hosts->servers[0]->puts, before + 1);
}

TEST_F(ParityTest, APageThatIsOnlyInTheParityHasNoOwner) {
  make({});
  ASSERT_TRUE(store({{1, 1}, {513, 2}, {3, 0}}));
  kill(0);
  EXPECT_EQ(hosts->parity->owner(1), std::nullopt);
  EXPECT_FALSE(hosts->parity->is_zero(1));
  EXPECT_FALSE(hosts->parity->lost(1));
  EXPECT_EQ(hosts->parity->owner(513), 1u);
  EXPECT_EQ(hosts->parity->owner(3), std::nullopt);
  EXPECT_TRUE(hosts->parity->is_zero(3));
  hosts->change(0);
  bool whole = false;
  hosts->parity->when_rebuilt([&] { whole = true; });
  EXPECT_FALSE(whole);
  settle();
  EXPECT_TRUE(whole);
  EXPECT_EQ(hosts->parity->owner(1), 0u);
  EXPECT_EQ(hosts->servers[0]->held.at(1), 1u) << "computed";
}

class ParitySimulationTest : public ::testing::Test {
 protected:
  static Simulation simulate(const Simulation::Plan& plan, const Shape& shape) { return {plan, std::make_unique<ParityHosts>(shape)}; }
  static const Parity::Counts& counts(Simulation& simulation) {
    return static_cast<ParityHosts&>(simulation.hosts()).parity->counts();
  }
};

TEST_F(ParitySimulationTest, WithoutFaultsNothingIsLostWhateverTheDelays) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    Simulation simulation = simulate({.seed = seed}, {.hosts = 3 + seed % 3, .data = 2 + seed % 3 / 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ASSERT_EQ(simulation.failed_stores(), 0u);
  }
}

TEST_F(ParitySimulationTest, OneDeathLosesNothingAndIsRepaired) {
  std::uint64_t reconstructed = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 1}, {.hosts = 3 + seed % 3});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ASSERT_EQ(simulation.failed_stores(), 0u) << "seed " << seed;
    reconstructed += counts(simulation).pages_reconstructed;
  }
  EXPECT_GT(reconstructed, 1000u) << "the test did nothing";
}

TEST_F(ParitySimulationTest, ARestoredMemoryLosesNothingAndGetsItsRedundancy) {
  std::uint64_t reconstructed = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = seed % 2}, {.hosts = 3 + seed % 3, .restored = true});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    reconstructed += counts(simulation).pages_reconstructed;
  }
  EXPECT_GT(reconstructed, 1000u) << "the test did nothing";
}

TEST_F(ParitySimulationTest, HostsThatComeInThePlaceOfDeadOnesGetWhatTheseHad) {
  unsigned replaced = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 3, .changes = 40}, {.hosts = 3 + seed % 2, .restored = seed % 3 == 0});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    replaced += static_cast<ParityHosts&>(simulation.hosts()).replaced;
  }
  EXPECT_GT(replaced, 20u);
}

TEST_F(ParitySimulationTest, WhoeverCanBeDoneWithoutIsNotMissed) {
  unsigned given_up = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation = simulate({.seed = seed, .give_ups = 2}, {.hosts = 3 + seed % 3, .restored = seed % 3 == 0});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    given_up += 2 - simulation.give_ups_left();
  }
  EXPECT_GT(given_up, 40u) << "the test did nothing";
}

TEST_F(ParitySimulationTest, MoreDeathsLoseNeverAWrongWord) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 3}, {.hosts = 4 + seed % 2});
    simulation.run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(ParitySimulationTest, HarmedContentsAreNeverTakenForRight) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = seed % 2, .harm_of_1000 = 100}, {.hosts = 3 + seed % 2, .harmed = true});
    simulation.run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(ParitySimulationTest, LittleRoomIsEnough) {
  constexpr std::uint64_t must_be_remote = 130 - Simulation::kept_local + Simulation::most_evicted;
  std::uint64_t dropped = 0;
  for (unsigned seed = 0; seed < 30; ++seed) {
    Simulation simulation = simulate({.seed = seed, .used_pages = 130, .zeros_of_100 = 1}, {.quota = must_be_remote / 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    dropped += counts(simulation).duplicates_dropped;
  }
  EXPECT_GT(dropped, 0u) << "there was no need";
}

}  // namespace
}  // namespace yado::pager
