#include "cli/rate_limit.hpp"

#include <gtest/gtest.h>

#include "base/units.hpp"

namespace yado::cli {
namespace {

TEST(CliRateLimitTest, IsBytesPerSecond) { EXPECT_EQ(parse_rate_limit("--limit", "50MiB/s"), 50_MiB); }

TEST(CliRateLimitTest, WhatIsNoneIsRefusedWithTheOptionsName) {
  for (const char* wrong : {"", "50", "50MiB", "50MiB/min", "-1MiB/s", "0MiB/s", "fast"}) {
    const auto limit = parse_rate_limit("--limit", wrong);
    ASSERT_FALSE(limit) << wrong;
    EXPECT_EQ(limit.error().code, Errc::invalid_argument);
    EXPECT_EQ(limit.error().message.find("--limit: "), 0u) << limit.error().message;
  }
  EXPECT_EQ(parse_rate_limit("--background-rate", "1023KiB/s").error().message, "--background-rate: must be at least 1MiB/s; leave it out for no limit");
}

}  // namespace
}  // namespace yado::cli
