#include "cli/memory_progress.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace yado::cli {
namespace {

using nlohmann::json;

TEST(DescribeProgressTest, EveryHostIsNamedWithWhatItHasAndHasToSave) {
  const json share{{"host", ""}, {"saved_bytes", 12u << 20}, {"left_bytes", 84u << 20}}, other{{"host", "h2"}, {"saved_bytes", 3u << 20}, {"left_bytes", 0}};
  EXPECT_EQ(describe_progress({{"host", "h1"}, {"saving", json::array({share, other})}}), "saving: h1 12 MiB of 96 MiB, h2 3072 KiB of 3072 KiB");
}

TEST(DescribeProgressTest, AHostThatIsBeingEmptiedIsWaitedFor) {
  const auto server = [](const char* host, std::uint64_t pages, bool alive, bool leaving) { return json{{"host", host}, {"pages", pages}, {"alive", alive}, {"leaving", leaving}}; };
  const json servers{server("h2", 9, true, false), server("h3", 2 << 8, true, true), server("h4", 9, false, true), server("h5", 0, true, true)};
  EXPECT_EQ(describe_progress({{"servers", servers}}), "waiting until h3 is empty: 2048 KiB left, and until h5 is empty: 0 B left");
}

TEST(DescribeProgressTest, OfAMoveWhatHasYetToGo) {
  EXPECT_EQ(describe_progress({{"host", "h1"}, {"to_move_bytes", 12u << 20}, {"servers", json::array()}}), "moving: 12 MiB left on h1");
}

TEST(DescribeProgressTest, OtherwiseThereIsNothingToSay) {
  EXPECT_EQ(describe_progress({{"memory_bytes", 4096}}), "");
  EXPECT_EQ(describe_progress(json::object()), "");
}

}  // namespace
}  // namespace yado::cli
