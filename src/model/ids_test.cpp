#include "model/ids.hpp"

#include <gtest/gtest.h>

#include <set>
#include <type_traits>

namespace yado {
namespace {

TEST(EpochTest, NoneIsOlderThanTheFirst) {
  EXPECT_EQ(Epoch().value(), 0u);
  EXPECT_LT(Epoch(), Epoch().next());
  EXPECT_LT(Epoch(), Epoch().next(255));
}

TEST(EpochTest, TheNextIsNewerWhoeverGrantsIt) {
  for (int before : {0, 1, 255})
    for (int after : {0, 1, 255}) {
      const Epoch epoch = Epoch::make(41, static_cast<std::uint8_t>(before));
      EXPECT_GT(epoch.next(static_cast<std::uint8_t>(after)), epoch) << before << " then " << after;
      EXPECT_EQ(epoch.next(static_cast<std::uint8_t>(after)).counter(), 42u);
    }
}

TEST(EpochTest, TwoGrantersNeverGiveTheSameNumber) {
  std::set<Epoch> granted;
  for (int granter = 0; granter < 256; ++granter)
    EXPECT_TRUE(granted.insert(Epoch::make(7, 1).next(static_cast<std::uint8_t>(granter))).second);
}

TEST(EpochTest, KeepsCounterAndGranterApart) {
  const Epoch epoch = Epoch::make(0x00ff'ffff'ffff'ffff, 0xab);
  EXPECT_EQ(epoch.counter(), 0x00ff'ffff'ffff'ffffu);
  EXPECT_EQ(epoch.granter(), 0xab);
  EXPECT_EQ(Epoch(epoch.value()), epoch);
}

TEST(EpochTest, SaysWhoGrantedItUnlessItWasControl) {
  EXPECT_EQ(fmt::format("{}", Epoch::make(7, 0)), "e7");
  EXPECT_EQ(fmt::format("{}", Epoch::make(7, 2)), "e7g2");
}

TEST(IdsTest, AHostIsNeverTakenForAWorkload) {
  static_assert(!std::is_convertible_v<HostId, WorkloadId> && !std::is_constructible_v<HostId, WorkloadId>);
  static_assert(!std::is_convertible_v<std::string, HostId>, "text becomes a name only on purpose");
  static_assert(!std::is_convertible_v<std::uint64_t, Epoch>);
  EXPECT_NE(HostId("h1"), HostId("h2"));
  EXPECT_TRUE(HostId().empty());
}

}  // namespace
}  // namespace yado
