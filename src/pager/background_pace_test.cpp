#include "pager/background_pace.hpp"

#include <gtest/gtest.h>

namespace yado::pager {
namespace {

TEST(BackgroundPaceTest, BesideWishesItTakesAQuarterOfTheTimeWhateverTheDisk) {
  for (const nanoseconds piece : {nanoseconds(100us), nanoseconds(10ms), nanoseconds(1s)}) {
    Instant now{1h};
    BackgroundPace pace(now);
    nanoseconds busy{0}, whole{0};
    for (int i = 0; i < 100; ++i) {
      pace.wished(now += piece);
      EXPECT_EQ(pace.piece(now), BackgroundPace::small_piece);
      const nanoseconds pause = pace.pause(piece, now);
      busy += piece;
      whole += piece + pause;
      now += pause;
    }
    EXPECT_EQ(busy * 4, whole);
  }
}

TEST(BackgroundPaceTest, WhenNobodyWishesItTakesAllOfTheTimeInLargePieces) {
  const Instant begun{1h};
  BackgroundPace pace(begun);
  EXPECT_FALSE(pace.alone(begun)) << "a workload that was just restored is about to wish";
  const Instant later = begun + BackgroundPace::quiet;
  EXPECT_TRUE(pace.alone(later));
  EXPECT_EQ(pace.piece(later), BackgroundPace::large_piece);
  EXPECT_EQ(pace.pause(10ms, later), 0ns);
  pace.wished(later);
  EXPECT_FALSE(pace.alone(later + BackgroundPace::quiet / 2)) << "one wish is rarely the last";
}

}  // namespace
}  // namespace yado::pager
