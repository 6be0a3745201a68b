#include "model/names.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace yado {
namespace {

/// Every value from 0 to `last` has a word of its own, and the word leads back to it.
template <class Enum>
void every_value_has_its_word(Enum last) {
  std::set<std::string_view> words;
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    const Enum value = static_cast<Enum>(i);
    const std::string_view word = name_of(value);
    EXPECT_FALSE(word.empty());
    EXPECT_TRUE(words.insert(word).second) << word << " stands for two values";
    EXPECT_EQ(from_name<Enum>(word), value) << word;
  }
  EXPECT_EQ(from_name<Enum>(""), std::nullopt);
  EXPECT_EQ(from_name<Enum>("no-such-word"), std::nullopt);
  // Words are compared whole and as they are written.
  const std::string word(name_of(last));
  EXPECT_EQ(from_name<Enum>(word + " "), std::nullopt);
  EXPECT_EQ(from_name<Enum>(word.substr(1)), std::nullopt);
  std::string upper = word;
  upper[0] = static_cast<char>(upper[0] - 'a' + 'A');
  EXPECT_EQ(from_name<Enum>(upper), std::nullopt);
}

TEST(NamesTest, EveryValueHasAWordOfItsOwnThatLeadsBackToIt) {
  every_value_has_its_word(Kind::vm);
  every_value_has_its_word(StandbyLevel::frozen);
  every_value_has_its_word(Consistency::exclusive);
  every_value_has_its_word(Way::frozen);
  every_value_has_its_word(InstanceState::exited);
  every_value_has_its_word(Purpose::builder);
  every_value_has_its_word(RouteState::stopped);
  every_value_has_its_word(Evidence::requested);
}

TEST(NamesTest, WordsAreWhatSpecsAndTheApiSay) {
  EXPECT_EQ(name_of(StandbyLevel::frozen), "frozen");
  EXPECT_EQ(name_of(Consistency::exclusive), "exclusive");
  EXPECT_EQ(name_of(Way::image), "image");
  EXPECT_EQ(name_of(RouteState::up), "up");
}

TEST(NamesDeathTest, AValueThatIsNoneStopsTheProgram) {
  EXPECT_DEATH((void)name_of(static_cast<Way>(77)), "has no word");
}

TEST(EvidenceTest, OnlyAReportedExitProvesDeath) {
  for (int i = 0; i <= static_cast<int>(Evidence::requested); ++i) {
    const Evidence evidence = static_cast<Evidence>(i);
    EXPECT_EQ(proves_death(evidence), evidence == Evidence::exited) << name_of(evidence);
  }
}

}  // namespace
}  // namespace yado
