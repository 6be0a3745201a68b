#include "pager/save_pace.hpp"

#include <gtest/gtest.h>

namespace yado::pager {
namespace {

using namespace std::chrono_literals;
using Time = SavePace::Time;

TEST(SavePaceTest, WhatIsWrittenTakesItsTime) {
  SavePace pace(1000);
  const Time start{1h};
  EXPECT_EQ(pace.after(500, start), start + 500ms);
  EXPECT_EQ(pace.after(500, start + 500ms), start + 1s);
  EXPECT_EQ(pace.after(100, start + 700ms), start + 1100ms) << "whoever did not wait for his turn waits for it now";
}

TEST(SavePaceTest, TimeThatWasNotUsedIsNotSavedUp) {
  SavePace pace(1000);
  const Time start{1h};
  EXPECT_EQ(pace.after(1000, start), start + 1s);
  EXPECT_EQ(pace.after(1000, start + 30s), start + 31s);
}

TEST(SavePaceTest, OfTwoLimitsTheSmallerCounts) {
  EXPECT_EQ(smaller_limit(5, 3), 3u);
  EXPECT_EQ(smaller_limit(0, 3), 3u) << "0 is none";
  EXPECT_EQ(smaller_limit(5, 0), 5u);
  EXPECT_EQ(smaller_limit(0, 0), 0u);
}

TEST(SavePaceTest, WithoutALimitNobodyWaits) {
  SavePace pace(0);
  EXPECT_FALSE(pace.limited());
  EXPECT_EQ(pace.after(1 << 30, Time{1h}), Time{1h});
}

}  // namespace
}  // namespace yado::pager
