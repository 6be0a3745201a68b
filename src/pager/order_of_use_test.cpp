#include "pager/order_of_use.hpp"

#include <gtest/gtest.h>

#include "image/temporary_directory.hpp"
#include "os/file.hpp"
#include "pager/use_order.hpp"

namespace yado::pager {
namespace {

using Pages = std::vector<PageNumber>;

class PagerOrderOfUseTest : public ::testing::Test {
 protected:
  PagerOrderOfUseTest() {
    config_.memory_bytes = 100 * page_bytes;
    config_.left_in = directory_.path();
    config_.use = directory_.path() / "use";
  }
  image::TemporaryDirectory directory_;
  ServiceConfig config_;
};

TEST_F(PagerOrderOfUseTest, WhatWasUsedAfterTheCutComesBeforeWhatWasInUseAtIt) {
  EXPECT_EQ(prefetch_order(config_, nullptr), Pages());
  ASSERT_TRUE(write_order_of_use(config_.left_in, 100, {7, 8, 9}));
  EXPECT_EQ(prefetch_order(config_, nullptr), (Pages{7, 8, 9}));
  ASSERT_TRUE(replace_order_of_use(config_.use, 100, {1}));
  ASSERT_TRUE(replace_order_of_use(config_.use, 100, {99, 8}));
  EXPECT_EQ(prefetch_order(config_, nullptr), (Pages{99, 8, 7, 8, 9})) << "the first mention counts";
}

TEST_F(PagerOrderOfUseTest, AdviceThatIsDamagedOrOfAnotherGuestIsNotFollowed) {
  ASSERT_TRUE(replace_order_of_use(config_.use, 1000, {999}));
  EXPECT_EQ(prefetch_order(config_, nullptr), Pages()) << "this guest has 100 pages";
  ASSERT_TRUE(replace_order_of_use(config_.use, 100, {3, 4}));
  auto bytes = os::read_text(config_.use);
  ASSERT_TRUE(bytes);
  for (const std::size_t at : {std::size_t{0}, std::size_t{9}, std::size_t{24}, bytes->size() - 1}) {
    std::string damaged = *bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    ASSERT_TRUE(os::replace_text(config_.use, damaged));
    EXPECT_EQ(prefetch_order(config_, nullptr), Pages()) << at;
  }
  ASSERT_TRUE(os::replace_text(config_.use, bytes->substr(0, bytes->size() / 2)));
  EXPECT_EQ(prefetch_order(config_, nullptr), Pages());
}

TEST_F(PagerOrderOfUseTest, ThePagersConfigurationSaysWhereItLies) {
  const auto read = config_from_text(to_text(config_));
  ASSERT_TRUE(read) << read.error().text();
  EXPECT_EQ(read->use, config_.use);
}

TEST(PagerUseOrderTest, NotesTheFirstUseOfEachPageInTheFirstSecondsOnly) {
  const Instant begun{};
  UseOrder use(100, begun);
  use.used(5, begun);
  use.used(3, begun + use_window / 2);
  use.used(5, begun + use_window);
  use.used(4, begun + use_window + nanoseconds(1));
  EXPECT_EQ(use.order(), (Pages{5, 3}));
  EXPECT_TRUE(use.has(3));
  EXPECT_FALSE(use.has(4));
}

}  // namespace
}  // namespace yado::pager
