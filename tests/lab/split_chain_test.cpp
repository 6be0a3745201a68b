// A virtual machine on several hosts that is checkpointed incrementally: a chain of images, what is raised from it, and its end.

#include <cstdlib>

#include "split_testing.hpp"

namespace yado::labtest {
namespace {

class SplitChainTest : public SplitImagesTest<SplitChainTest> {
 protected:
  std::string newest() { return image().value("id", ""); }
};

TEST_F(SplitChainTest, AChainOfIncrementalCheckpointsIsRaisedFromAndEndsWithTheNextFullOne) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  ASSERT_NO_FATAL_FAILURE(run_under_load());

  // One full image and two deltas, under load.
  std::vector<std::string> chain{newest()};
  for (int i = 0; i < 2; ++i) {
    const Ended taken = cluster().yado({"checkpoint", "bigvm", "--incremental"});
    ASSERT_EQ(taken.status, 0) << taken.output;
    EXPECT_NE(taken.output.find("delta of " + chain.back()), std::string::npos) << taken.output;
    EXPECT_NE(taken.output.find("standing still for"), std::string::npos) << taken.output;
    chain.push_back(newest());
  }
  for (const std::string& each : chain) EXPECT_EQ(disks_of(each), each == chain.front() ? "disk" : "disk-delta") << each;
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const json view = image();
  EXPECT_EQ(view["bases"], json(std::vector<std::string>(chain.begin(), chain.end() - 1))) << view.dump();
  LAB_MUST(const Ended shown, cluster().exec("h1", {std::getenv("YADO_PROGRAM"), "images", "show", chain.back(), "--store", (cluster().host_directory("h1") / "images").native()}));
  EXPECT_EQ(shown.status, 0) << shown.output;
  for (const std::string& each : chain) EXPECT_NE(shown.output.find(each), std::string::npos) << each << ": " << shown.output;
  EXPECT_NE(shown.output.find("h2 (indices)"), std::string::npos) << shown.output;

  // The same through control, from anywhere: every host that has some of it looks at its own, and compares its checksums.
  const Ended everywhere = cluster().yado({"images", "show", "bigvm", "--verify", "--json"});
  ASSERT_EQ(everywhere.status, 0) << everywhere.output;
  const json seen = json::parse(everywhere.output, nullptr, false);
  EXPECT_EQ(seen.value("id", ""), chain.back());
  EXPECT_EQ(seen["chain"].size(), chain.size()) << everywhere.output;
  std::set<std::string> copies;
  for (const json& copy : seen["copies"]) {
    EXPECT_TRUE(copy.contains("verified")) << copy.dump();
    copies.insert(copy.value("id", ""));
  }
  EXPECT_EQ(copies, (std::set<std::string>{chain.back(), chain.back() + ".h2", chain.back() + ".h3"})) << everywhere.output;
  for (const json& member : seen["members"]) EXPECT_EQ(member.value("here", ""), "image") << member.dump();

  for (const std::string& each : chain)
    for (const char* host : {"h2", "h3"}) {
      EXPECT_TRUE(stored(host).contains(each + "." + host));
      EXPECT_TRUE(stored("h1").contains(".indices-" + each + "." + host));
    }

  // The process dies: it goes on from the chain on the same host, whose members are loaded where they were saved. Then the host does: from the
  // copies of the whole chain, on the one that saved nothing.
  for (const char* fault : {"process", "host-silent"}) {
    SCOPED_TRACE(fault);
    ASSERT_NO_FATAL_FAILURE(expect_raised_from_image_after(fault));
    EXPECT_EQ(newest(), chain.back());
    LAB_MUST(const json memory, cluster().control("GET", "/v1/workloads/bigvm/memory"));
    std::set<std::string> keepers;
    for (const json& server : memory["servers"]) keepers.insert(server.value("host", ""));
    EXPECT_EQ(keepers, (std::set<std::string>{"h2", "h3"})) << memory.dump();
  }
  ASSERT_OK(cluster().heal("h1"));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");

  // The life that was raised from the chain goes on with it, and what it saved is raised from.
  const Ended delta = cluster().yado({"checkpoint", "bigvm", "--incremental"});
  ASSERT_EQ(delta.status, 0) << delta.output;
  EXPECT_NE(delta.output.find("delta of " + chain.back()), std::string::npos) << delta.output;
  chain.push_back(newest());
  EXPECT_EQ(disks_of(newest()), "disk-delta");
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  EXPECT_EQ(image()["bases"], json(std::vector<std::string>(chain.begin(), chain.end() - 1)));
  ASSERT_NO_FATAL_FAILURE(expect_raised_from_image_after("process"));
  EXPECT_EQ(newest(), chain.back());

  // Another main host goes on with the life, and so with its chain; of the disks its next image has all.
  std::vector<std::string> others = image()["holders"];
  std::erase(others, cluster().owner_host("bigvm"));
  ASSERT_FALSE(others.empty());
  const Ended moved = cluster().yado({"move", "bigvm", others.front()});
  ASSERT_EQ(moved.status, 0) << moved.output;
  const Ended of_moved = cluster().yado({"checkpoint", "bigvm", "--incremental"});
  ASSERT_EQ(of_moved.status, 0) << of_moved.output;
  EXPECT_NE(of_moved.output.find("delta of " + chain.back()), std::string::npos) << of_moved.output;
  EXPECT_EQ(disks_of(newest()), "disk");
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  ASSERT_NO_FATAL_FAILURE(expect_raised_from_image_after("process"));

  // With a full image all of the old chain goes, everywhere.
  const Ended full = cluster().yado({"checkpoint", "bigvm"});
  ASSERT_EQ(full.status, 0) << full.output;
  EXPECT_TRUE(image()["bases"].empty());
  EXPECT_EQ(disks_of(newest()), "disk");
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  expect_only(newest());
  expect_all_correct(*load);
}

}  // namespace
}  // namespace yado::labtest
