// A virtual machine on several hosts whose chain of incremental images grows: its hosts merge it while it runs, and it is raised from what comes of it.

#include "split_testing.hpp"

namespace yado::labtest {
namespace {

class SplitMergeTest : public SplitImagesTest<SplitMergeTest> {
 protected:
  void checkpoint(std::vector<std::string> more = {}) {
    std::vector<std::string> command{"checkpoint", "bigvm", "--incremental"};
    command.insert(command.end(), more.begin(), more.end());
    const Ended taken = cluster().yado(command);
    ASSERT_EQ(taken.status, 0) << taken.output;
    ASSERT_NE(taken.output.find("delta of "), std::string::npos) << taken.output;
    if (!more.empty()) {
      EXPECT_NE(taken.output.find("at most 20.0 MiB/s on each host"), std::string::npos) << taken.output;
    }
  }
};

TEST_F(SplitMergeTest, AChainThatIsTooLongIsMergedWhereItsSharesLieAndRaisedFrom) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  ASSERT_NO_FATAL_FAILURE(run_under_load());

  // One full image and four deltas: one more than is left as it is.
  for (int i = 0; i < 4; ++i) ASSERT_NO_FATAL_FAILURE(checkpoint(i == 0 ? std::vector<std::string>{"--limit", "20MiB/s"} : std::vector<std::string>{}));
  const std::string newest = image().value("id", "");
  const auto what_failed = [&] {
    std::string all;
    for (const json& event : cluster().events())
      if (event.value("kind", "").starts_with("image-merge")) all += event.dump() + "\n";
    return all;
  };
  ASSERT_TRUE(cluster().until([&] { return image()["bases"].empty(); })) << what_failed();
  EXPECT_EQ(image().value("id", ""), newest);
  expect_only(newest);
  EXPECT_EQ(disks_of(newest), "disk");
  const Ended shown = cluster().yado({"images", "show", "bigvm", "--verify", "--json"});
  ASSERT_EQ(shown.status, 0) << shown.output;
  const json seen = json::parse(shown.output, nullptr, false);
  EXPECT_TRUE(seen.value("merged", false)) << shown.output;
  EXPECT_EQ(seen["chain"].size(), 1u) << shown.output;
  for (const json& copy : seen["copies"]) EXPECT_TRUE(copy.contains("verified")) << copy.dump();

  // It is what the next one goes on from.
  ASSERT_NO_FATAL_FAILURE(checkpoint());
  EXPECT_EQ(image()["bases"], json(std::vector<std::string>{newest}));
  EXPECT_EQ(disks_of(image().value("id", "")), "disk-delta");
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");

  // And what is raised from: on the hosts that saved it, then from the copies on another one.
  for (const char* fault : {"process", "host-silent"}) {
    SCOPED_TRACE(fault);
    ASSERT_NO_FATAL_FAILURE(expect_raised_from_image_after(fault));
  }
  ASSERT_OK(cluster().heal("h1"));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  expect_all_correct(*load);
}

}  // namespace
}  // namespace yado::labtest
