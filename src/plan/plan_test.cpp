#include <gtest/gtest.h>

#include "plan/placement.hpp"
#include "plan/rate_limit.hpp"

namespace yado::plan {
namespace {

HostView view(const char* name) {
  return HostView{.host = HostId(name), .alive = true, .memory_free_bytes = 1 << 30};
}
const HostId h1("h1"), h2("h2"), h3("h3");

TEST(PlacementTest, TheFastestWayOfRaisingWins) {
  auto a = view("h1"), b = view("h2"), c = view("h3");
  b.holds_image = true;
  c.holds_frozen = true;
  EXPECT_EQ(rank({}, {a, b, c}, {}), (std::vector{h3, h2, h1}));
  a.asleep_here = true;
  EXPECT_EQ(rank({}, {a, b, c}, {}).front(), h1);
}

TEST(PlacementTest, DeadExcludedSmallAndForbiddenHostsAreLeftOut) {
  WorkloadSpec spec;
  spec.container.memory_bytes = 1 << 20;
  spec.policy.placement = {h3, h1};
  auto small = view("h1");
  small.memory_free_bytes = 10;
  EXPECT_EQ(rank(spec, {small, view("h2"), view("h3")}, {}), (std::vector{h3}));
  EXPECT_TRUE(rank(spec, {view("h3")}, {h3}).empty());
  auto dead = view("h3");
  dead.alive = false;
  EXPECT_TRUE(rank(spec, {dead}, {}).empty());
}

TEST(PlacementTest, AStandbyNeverStandsBesideItsOwnerAndStaysWhereItIs) {
  auto b = view("h2"), c = view("h3");
  c.holds_frozen = true;
  c.owners = 9;
  EXPECT_EQ(standby_hosts({}, {view("h1"), b, c}, h1), (std::vector{h3, h2}));
}

TEST(RateLimitTest, IsASlidingWindow) {
  RateLimit limit;
  auto at = [](int ms) { return Instant(milliseconds(ms)); };
  EXPECT_TRUE(limit.admit(2, 1000ms, at(0)));
  EXPECT_TRUE(limit.admit(2, 1000ms, at(900)));
  EXPECT_FALSE(limit.admit(2, 1000ms, at(999)));
  EXPECT_TRUE(limit.admit(2, 1000ms, at(1000)));
  EXPECT_FALSE(limit.admit(2, 1000ms, at(1001)));
  EXPECT_EQ(limit.retry_at(1000ms), at(1900));
}

}  // namespace
}  // namespace yado::plan
