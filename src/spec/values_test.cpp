#include "spec/values.hpp"

#include <gtest/gtest.h>

namespace yado::spec {
namespace {

TEST(SpecValuesTest, DurationsHaveAWholeNumberAndAUnit) {
  EXPECT_EQ(parse_duration("250ms"), 250ms);
  EXPECT_EQ(parse_duration("5s"), 5000ms);
  EXPECT_EQ(parse_duration("10min"), 600'000ms);
  EXPECT_EQ(parse_duration("1h"), 3'600'000ms);
  EXPECT_EQ(parse_duration("7d"), 7 * 86'400'000ms);
  for (const char* wrong : {"", "5", "s", "0s", "-5s", "+5s", "1.5s", "5 s", "5S", "5sec", "5m", " 5s", "5s ",
                            "99999999999999999999s", "9999999999999999h", "11000d"})
    EXPECT_FALSE(parse_duration(wrong)) << wrong;
  EXPECT_EQ(parse_duration("5 s").error().message,
            "\"5 s\" is not a duration: a whole number above 0 and ms, s, min, h or d, such as \"250ms\" or \"10min\"");
}

TEST(SpecValuesTest, SizesAreBinaryUnits) {
  EXPECT_EQ(parse_size("4096B"), 4096U);
  EXPECT_EQ(parse_size("512MiB"), std::uint64_t{512} << 20);
  EXPECT_EQ(parse_size("1TiB"), std::uint64_t{1} << 40);
  EXPECT_EQ(parse_size("1.5GiB"), std::uint64_t{1536} << 20);
  EXPECT_EQ(parse_size("0.125KiB"), 128U);
  for (const char* wrong : {"", "512", "512MB", "512M", ".5GiB", "1.GiB", "1.0005GiB", "0.1GiB", "1.5.5GiB", "1.5", "1.5B", "-1MiB", "18446744073709551615TiB", "2000000TiB"})
    EXPECT_FALSE(parse_size(wrong)) << wrong;
}

TEST(SpecValuesTest, BytesPerSecondAreASizeAndASecond) {
  EXPECT_EQ(parse_bytes_per_second("50MiB/s"), std::uint64_t{50} << 20);
  for (const char* wrong : {"", "/s", "50MiB", "50MiB/", "50MiB/min", "0MiB/s", "50 MiB/s", "MiB/s"}) EXPECT_FALSE(parse_bytes_per_second(wrong)) << wrong;
}

TEST(SpecValuesTest, AMemoryHostMayHaveASize) {
  EXPECT_EQ(parse_memory_host("h2"), (MemoryHost{.host = HostId("h2"), .address = {}}));
  EXPECT_EQ(parse_memory_host("h2:1.5GiB"), (MemoryHost{.host = HostId("h2"), .address = {}, .bytes = std::uint64_t{1536} << 20}));
  for (const char* wrong : {"", ":1GiB", "h2:", "h2:0B", "h2:1", "h2:1GiB:2", "h 2"}) EXPECT_FALSE(parse_memory_host(wrong)) << wrong;
}

TEST(SpecValuesTest, RatesCountPerDuration) {
  EXPECT_EQ(parse_rate("10/min"), (Rate{10, 60'000ms}));
  EXPECT_EQ(parse_rate("1/5s"), (Rate{1, 5000ms}));
  for (const char* wrong :
       {"", "10", "/min", "10/", "0/min", "-1/min", "10/0s", "10 / min", "10/min/s", "5000000000/s"})
    EXPECT_FALSE(parse_rate(wrong)) << wrong;
}

TEST(SpecValuesTest, VariablesComeFromTheEnvironmentGivenAndNowhereElse) {
  const Environment environment{{"HERE", "/srv"}, {"_A1", "${HERE}"}};
  EXPECT_EQ(expand("${HERE}/site", environment), "/srv/site");
  EXPECT_EQ(expand("${_A1}", environment), "${HERE}") << "what a variable holds is not expanded again";
  EXPECT_EQ(expand("$HOME $$ $", environment), "$HOME $$ $") << "a plain dollar is the shell's";
  EXPECT_EQ(expand("$${HERE}", environment), "${HERE}");
  EXPECT_EQ(expand("${PATH}", environment).error().message, "the variable \"PATH\" is not set");
  for (const char* wrong : {"${", "a ${HERE", "${}", "${1A}", "${A-B}", "${HERE:-x}"})
    EXPECT_FALSE(expand(wrong, environment)) << wrong;
}

TEST(SpecValuesTest, NearestSuggestsTyposButNotOtherWords) {
  constexpr std::string_view keys[] = {"command", "root", "memory", "pids"};
  EXPECT_EQ(nearest("comand", keys), "command");
  EXPECT_EQ(nearest("rot", keys), "root");
  EXPECT_EQ(nearest("pid", keys), "pids");
  EXPECT_EQ(nearest("volume", keys), "");
  EXPECT_EQ(nearest("", keys), "");
  EXPECT_EQ(nearest(std::string(1'000'000, 'a'), keys), "");
}

TEST(SpecValuesTest, QuotedTextStaysOnOneShortLine) {
  EXPECT_EQ(quote("a\nb\"\\\x7f"), R"("a\x0ab\"\\\x7f")");
  EXPECT_EQ(quote(std::string(100, 'a')), "\"" + std::string(60, 'a') + "...\"");
  EXPECT_EQ(quote(std::string(59, 'a') + "\u00e9\u00e9"), "\"" + std::string(59, 'a') + "...\"");
}

}  // namespace
}  // namespace yado::spec
