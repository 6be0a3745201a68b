// Guests of all kinds beside links of all kinds, as figures only.
#include "workload/vm/convergence.hpp"

#include <cmath>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <random>

namespace yado::vm {
namespace {

/// It writes pages of a hot set at random, the faster the more processor time it has.
struct Guest {
  double pages_a_second = 0, hot_pages = 0, cpus = 1;
  double written_in(double seconds, double share) const { return hot_pages * (1 - std::exp(-pages_a_second * share * seconds / hot_pages)); }
};

struct Way {
  double pages_a_second = 30'000;
  double beginning = 0.002;  ///< of a round, in seconds
  double unsteady = 0;
};

struct Move {
  Convergence rounds;
  double pause = 0;  ///< in seconds: what it stood still for
};

Move simulate(const Guest& guest, const Way& way, double memory_pages, const Convergence::Options& options, unsigned seed, bool has_brake = true) {
  Move move{Convergence(options)};
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> noise(1 - way.unsteady, 1 + way.unsteady);
  double left = memory_pages;
  if (!has_brake) move.rounds.cannot_slow_down();
  for (Convergence::Step step = Convergence::Step::go_on; step != Convergence::Step::stop;) {
    const double allowed = move.rounds.cpus() > 0 ? std::min(move.rounds.cpus(), guest.cpus) : guest.cpus;
    const double took = way.beginning + left / (way.pages_a_second * noise(random));
    const double written = std::floor(guest.written_in(took, allowed / guest.cpus));
    step = move.rounds.after({.sent = static_cast<std::uint64_t>(left), .left = static_cast<std::uint64_t>(written),
                              .took = nanoseconds(static_cast<std::int64_t>(took * 1e9)), .cpus = allowed});
    left = written;
    if (move.rounds.rounds() > 200) break;
  }
  move.pause = left / way.pages_a_second;
  return move;
}

constexpr double memory = 262'144;

TEST(ConvergenceTest, AGuestThatWritesLittleIsNotSlowedDown) {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    const Move move = simulate({.pages_a_second = 1000, .hot_pages = 20'000}, {.unsteady = 0.3}, memory, {}, seed);
    EXPECT_EQ(move.rounds.cpus(), 0);
    EXPECT_LE(move.pause, 0.1);
    EXPECT_LE(move.rounds.rounds(), 6u);
  }
}

TEST(ConvergenceTest, AFastWriterStandsStillNoLonger) {
  for (unsigned seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    const auto between = [&](double least, double most) { return least * std::pow(most / least, std::uniform_real_distribution<double>(0, 1)(random)); };
    const Way way{.pages_a_second = between(1000, 500'000), .unsteady = 0.3};
    // Up to fifty times as fast as pages go, all over its memory.
    const Guest guest{.pages_a_second = way.pages_a_second * between(0.01, 50), .hot_pages = between(2000, memory), .cpus = between(1, 16)};
    const Move move = simulate(guest, way, memory, {}, seed);
    SCOPED_TRACE(fmt::format("seed {}: {} of {} pages/s, {} hot, {} processors; {} rounds, {} left, {} processors at last", seed, guest.pages_a_second,
                             way.pages_a_second, guest.hot_pages, guest.cpus, move.rounds.rounds(), move.rounds.left(), move.rounds.cpus()));
    // As is allowed, but for how unsteady the way is, and for what is less than is worth another round.
    EXPECT_LE(move.pause, 0.05 * 1.3 / 0.7 + 64 / way.pages_a_second);
    EXPECT_LE(move.rounds.rounds(), 60u);
  }
}

TEST(ConvergenceTest, WithoutABrakeItStopsWhenNothingGetsBetter) {
  const Guest guest{.pages_a_second = 100'000, .hot_pages = 100'000};
  const Move free = simulate(guest, {}, memory, {}, 1, false), slowed = simulate(guest, {}, memory, {}, 1);
  EXPECT_LE(free.rounds.rounds(), 5u);
  EXPECT_EQ(free.rounds.cpus(), 0);
  EXPECT_GT(free.pause, 20 * slowed.pause);
}

/// Its first round is of zeros, which need no link.
TEST(ConvergenceTest, AFastFirstRoundIsNotTheRateOfTheLink) {
  Convergence rounds({});
  EXPECT_EQ(rounds.after({.sent = 262'144, .left = 20'000, .took = 100ms, .cpus = 1}), Convergence::Step::go_on);
  EXPECT_EQ(rounds.after({.sent = 20'000, .left = 5000, .took = 2s, .cpus = 1}), Convergence::Step::go_on);
  EXPECT_EQ(rounds.expected_pause(), 500ms);
  EXPECT_EQ(rounds.after({.sent = 5000, .left = 400, .took = 500ms, .cpus = 1}), Convergence::Step::stop);
}

TEST(ConvergenceTest, AtTheLeastItGivesUp) {
  Convergence rounds({.pause = 0ns});
  std::vector<double> allowed;
  Convergence::Round round{.sent = 5000, .left = 5000, .took = 100ms, .cpus = 1};
  while (rounds.after(round) == Convergence::Step::slow_down) {
    allowed.push_back(rounds.cpus());
    round.cpus = rounds.cpus();
  }
  EXPECT_EQ(allowed, (std::vector<double>{0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.01}));
}

}  // namespace
}  // namespace yado::vm
