#include "pager/save_progress.hpp"

#include <gtest/gtest.h>

namespace yado::pager {
namespace {

using Pages = std::vector<PageNumber>;
constexpr std::uint64_t pages = 8;
const PageBits anywhere(pages, true);

Pages take_cold(SaveProgress& save) {
  return save.take(0, pages, anywhere, true);
}

TEST(SaveProgressTest, WhatIsWrittenDuringARoundIsLeftForTheNextOne) {
  SaveProgress save(PageBits(pages, true));
  save.begin_round();
  EXPECT_EQ(save.take(0, 2, anywhere, false), (Pages{0, 1}));
  save.written({1, 2});
  EXPECT_EQ(take_cold(save), (Pages{3, 4, 5, 6, 7}));
  EXPECT_EQ(save.unsaved(anywhere), 2u) << "1, which was saved before it was written, and 2, which was not";
  save.begin_round();
  EXPECT_EQ(take_cold(save), (Pages{1, 2}));
  EXPECT_EQ(save.unsaved(anywhere), 0u);
}

TEST(SaveProgressTest, WhatComesDuringARoundIsLeftForTheNextOne) {
  SaveProgress save(PageBits(pages, true));
  save.begin_round();
  save.came(2);
  EXPECT_EQ(take_cold(save), (Pages{0, 1, 3, 4, 5, 6, 7}));
  save.begin_round();
  EXPECT_EQ(take_cold(save), (Pages{2}));
}

TEST(SaveProgressTest, WhatIsWrittenInBothHalvesOfARoundIsLeftOutOfTheNextOneToo) {
  SaveProgress save(PageBits(pages, true));
  save.begin_round();
  save.written({1, 3});
  save.middle_of_round();
  save.written({3, 3});
  EXPECT_EQ(take_cold(save), (Pages{0, 6, 7}));
  save.begin_round();
  EXPECT_EQ(take_cold(save), (Pages{1, 2, 4, 5})) << "3 was written twice";
  save.begin_round();
  EXPECT_EQ(take_cold(save), (Pages{3})) << "it was not written any more";
  EXPECT_EQ(save.unsaved(anywhere), 0u);
}

TEST(SaveProgressTest, TheMiddleHasHalfOfWhatIsUnsavedBeforeIt) {
  const PageBits all(1024, true);
  SaveProgress save(all);
  EXPECT_EQ(save.middle(), 512u);
  (void)save.take(0, 512, all, false);
  EXPECT_EQ(save.middle(), 768u);
  (void)save.take(0, 1024, all, false);
  EXPECT_EQ(save.middle(), 0u) << "nothing is left";
}

TEST(SaveProgressTest, WhoWantsAllGetsWhatIsHotToo) {
  SaveProgress save(PageBits(pages, true));
  save.begin_round();
  save.written({0, 4});
  EXPECT_EQ(save.take(0, pages, anywhere, false), (Pages{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(SaveProgressTest, APageThatWasWrittenBelongsIntoTheImage) {
  SaveProgress delta{PageBits(pages)};
  delta.begin_round();
  delta.came(5);
  EXPECT_EQ(delta.unsaved(anywhere), 0u) << "not changed since the base";
  delta.written({5, 1});
  delta.begin_round();
  EXPECT_EQ(take_cold(delta), (Pages{5}));
  delta.goes(5);
  EXPECT_FALSE(delta.was_here(5));
}

}  // namespace
}  // namespace yado::pager
