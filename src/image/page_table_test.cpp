#include "image/page_table.hpp"

#include <gtest/gtest.h>

#include "image/page_testing.hpp"

namespace yado::image {
namespace {

TEST(ImagePageTableTest, OnlyTheRecordThatWasMeantIsMoved) {
  PageTable table(10'000);
  EXPECT_EQ(table.put(5000_page, {1, 11}, 0_round), std::nullopt);
  EXPECT_FALSE(table.move(5000_page, 2, 3));  // a newer version came meanwhile
  EXPECT_FALSE(table.move(5001_page, 1, 3));
  EXPECT_FALSE(table.move(1_page, 1, 3));
  EXPECT_TRUE(table.move(5000_page, 1, 3));
  EXPECT_TRUE(table.refers(5000_page, 3));
  EXPECT_FALSE(table.refers(5000_page, 1));
  EXPECT_FALSE(table.refers(1_page, 1));
  EXPECT_EQ(table.put(5000_page, {4, 44}, 0_round), (PageRecord{3, 11}));  // the checksum went along
}

TEST(ImagePageTableTest, AMovedRecordKeepsItsRound) {
  PageTable table(1);
  (void)table.put(0_page, {1, 11}, 7_round);
  EXPECT_TRUE(table.move(0_page, 1, 2));
  EXPECT_EQ(table.put(0_page, {3, 33}, 6_round), (PageRecord{3, 33}));  // too late: itself
  EXPECT_EQ(table.put(0_page, {4, 44}, 7_round), (PageRecord{2, 11}));
}

}  // namespace
}  // namespace yado::image
