#include "cli/saving.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace yado::cli {
namespace {

using nlohmann::json;

TEST(DescribeSavingTest, EveryHostIsNamedWithWhatItHasAndHasToSave) {
  const json share{{"host", ""}, {"saved_bytes", 12u << 20}, {"left_bytes", 84u << 20}}, other{{"host", "h2"}, {"saved_bytes", 3u << 20}, {"left_bytes", 0}};
  EXPECT_EQ(describe_saving({{"saving", json::array({share, other})}}, "h1"), "saving: h1 12 MiB of 96 MiB, h2 3072 KiB of 3072 KiB");
}

TEST(DescribeSavingTest, AHostThatIsBeingEmptiedIsWaitedFor) {
  const auto server = [](const char* host, std::uint64_t pages, bool alive, bool leaving) { return json{{"host", host}, {"pages", pages}, {"alive", alive}, {"leaving", leaving}}; };
  const json servers{server("h2", 9, true, false), server("h3", 2 << 8, true, true), server("h4", 9, false, true), server("h5", 0, true, true)};
  EXPECT_EQ(describe_saving({{"servers", servers}}, "h1"), "waiting until h3 is empty: 2048 KiB left, and until h5 is empty: 0 B left");
}

TEST(DescribeSavingTest, WithoutACheckpointThereIsNothingToSay) {
  EXPECT_EQ(describe_saving({{"memory_bytes", 4096}}, "h1"), "");
  EXPECT_EQ(describe_saving(json::object(), ""), "");
}

}  // namespace
}  // namespace yado::cli
