#include "cli/split_over.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace yado::cli {
namespace {

using nlohmann::json;

const json spec = {{"vm", {{"memory_bytes", 2048}, {"split", {{"local_bytes", 1024}, {"over", {{{"host", "h9"}}}}, {"redundancy", "none"}}}}}};

json hosts(std::initializer_list<std::pair<const char*, std::uint64_t>> all) {
  json made = json::array();
  for (const auto& [host, bytes] : all) made.push_back({{"host", host}, {"bytes", bytes}});
  return made;
}

TEST(SplitOverTest, TheMainHostsSizeStaysThereAndTheOthersKeepTheRest) {
  const auto split = split_over("h1:1.5GiB,h2,h3:512MiB", spec, "h1");
  ASSERT_TRUE(split) << split.error().text();
  EXPECT_EQ(split->at("local_bytes"), std::uint64_t{1536} << 20);
  EXPECT_EQ(split->at("over"), hosts({{"h2", 0}, {"h3", std::uint64_t{512} << 20}}));
  EXPECT_EQ(split->at("redundancy"), "none") << "as it was";
}

TEST(SplitOverTest, WithoutASizeAsMuchStaysAsBeforeAndAloneAllOfIt) {
  EXPECT_EQ(split_over("h2", spec, "h1")->at("local_bytes"), 1024);
  EXPECT_EQ(split_over("h1,h2", spec, "h1")->at("local_bytes"), 1024);
  const auto home = split_over("h1", spec, "h1");
  EXPECT_EQ(home->at("local_bytes"), 2048);
  EXPECT_TRUE(home->at("over").empty());
}

TEST(SplitOverTest, NonsenseIsRefusedWithItsPlace) {
  EXPECT_EQ(split_over("h1,h2:5", spec, "h1").error().message.substr(0, 12), "--over: h2: ");
  for (const char* wrong : {"", ",", "h1,", "h1,h2,h2", "h1:1GiB,h1", "h1;h2", "h1:0B"}) EXPECT_FALSE(split_over(wrong, spec, "h1")) << wrong;
}

TEST(SplitOverTest, WhoIsNotSplitIsToldHowToBe) {
  for (const json& other : {json{{"vm", {{"memory_bytes", 2048}}}}, json{{"container", json::object()}}})
    EXPECT_NE(split_over("h1,h2", other, "h1").error().message.find("split = {}"), std::string::npos);
}

}  // namespace
}  // namespace yado::cli
