// Clones: further virtual machines from one image, beside the one that it was taken of.
#include "split_testing.hpp"

namespace yado::labtest {
namespace {

class CloneTest : public LabTest<CloneTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = true, .database = false, .disk = {}, .name = {}}; }

 protected:
  std::string said_by(const std::string& guest, const std::string& script) { return labtest::said_by(cluster(), guest, script); }
  /// What it keeps in memory, and on its disk.
  void tell(const std::string& guest, const std::string& word) { said_by(guest, "mountpoint -q /mnt || mount -t tmpfs none /mnt; echo " + word + " > /mnt/word && echo " + word + " > /var/word && sync"); }
  std::string word_of(const std::string& guest) { return said_by(guest, "cat /mnt/word /var/word | tr '\n' ' '"); }
  std::set<std::string> images_of(const std::string& workload) {
    std::set<std::string> names;
    const auto all = cluster().control("GET", "/v1/images");
    for (const json& one : all ? (*all)["images"] : json::array())
      if (one.value("workload", "") == workload) names.insert(one.value("id", ""));
    return names;
  }
};

TEST_F(CloneTest, ManyComeFromOneImageAndEachGoesItsOwnWay) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = json::array();
  spec["vm"]["split"]["local_bytes"] = 64u << 20;
  ASSERT_OK(cluster().deploy(spec));
  const auto load = load_of_split_guest(cluster().gate());
  ASSERT_TRUE(load && answered_after(*load, 0));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  tell("bigvm", "one");
  ASSERT_EQ(cluster().yado({"checkpoint", "bigvm", "--incremental"}).status, 0);
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const std::string image = cluster().workload("bigvm")["image"].value("id", "");
  ASSERT_EQ(cluster().workload("bigvm")["image"]["bases"].size(), 1u);
  const std::uint64_t epoch = cluster().epoch("bigvm");
  tell("bigvm", "two");

  // Over other hosts, and where control finds it best.
  const auto holders = cluster().workload("bigvm")["image"]["holders"].get<std::vector<std::string>>();
  const Ended first = cluster().yado({"restore", "bigvm", "--as", "twin", "--over", holders.back() + ":48MiB," + (holders.back() == "h4" ? "h3" : "h4")});
  ASSERT_EQ(first.status, 0) << first.output;
  const Ended second = cluster().yado({"restore", "bigvm", "--as", "third"});
  ASSERT_EQ(second.status, 0) << second.output;
  EXPECT_EQ(word_of("twin"), "one one ");
  EXPECT_EQ(word_of("third"), "one one ");
  tell("twin", "three");
  EXPECT_EQ(word_of("third"), "one one ");
  EXPECT_EQ(word_of("bigvm"), "two two ");
  EXPECT_EQ(cluster().epoch("bigvm"), epoch) << "it went on";
  EXPECT_EQ(cluster().workload("bigvm")["image"].value("id", ""), image);
  EXPECT_EQ(cluster().workload("twin")["raised_from"], image);
  EXPECT_EQ(images_of("twin"), std::set<std::string>()) << "nothing was copied";
  const auto load_of_twin = load_of_split_guest(cluster().gate(), "twin.test");
  ASSERT_TRUE(load_of_twin && answered_after(*load_of_twin, 0));

  // What is taken, unknown, or in use is refused.
  EXPECT_NE(cluster().yado({"restore", "bigvm", "--as", "twin"}).output.find("a workload named twin already"), std::string::npos);
  EXPECT_NE(cluster().yado({"restore", "bigvm", "--as", "fourth", "--service-host", "twin.test"}).output.find("leads to twin already"), std::string::npos);
  EXPECT_NE(cluster().yado({"restore", "bigvm", "--as", "Not/A/Name"}).status, 0);

  // Its process dies before it has an image of its own: it begins again as it was cloned.
  const std::uint64_t since = cluster().newest_event();
  ASSERT_OK(cluster().fault("process", cluster().owner_host("twin"), "twin"));
  const auto ready = cluster().event(since, "ready", "twin");
  ASSERT_TRUE(ready);
  EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
  EXPECT_EQ(word_of("twin"), "one one ");
  tell("twin", "four");

  expect_all_correct(*load);
  // The origin goes, with whatever nobody needs.
  EXPECT_EQ(cluster().yado({"rm", "bigvm"}).status, 0);
  const Ended taken = cluster().yado({"checkpoint", "twin"});
  EXPECT_EQ(taken.status, 0) << taken.output;
  ASSERT_TRUE(cluster().wait_redundant("twin")) << cluster().why_not_redundant("twin");
  EXPECT_TRUE(images_of("bigvm").contains(image)) << "the third leans on it";
  EXPECT_EQ(cluster().yado({"rm", "third"}).status, 0);
  EXPECT_TRUE(cluster().until([&] { return images_of("bigvm").empty(); })) << ::testing::PrintToString(images_of("bigvm"));

  // And the clone is a VM like any other: its next image is a delta, and its host's death is outlived.
  tell("twin", "five");
  const Ended delta = cluster().yado({"checkpoint", "twin", "--incremental"});
  EXPECT_EQ(delta.status, 0) << delta.output;
  ASSERT_TRUE(cluster().wait_redundant("twin")) << cluster().why_not_redundant("twin");
  EXPECT_EQ(cluster().workload("twin")["image"]["bases"].size(), 1u) << delta.output;
  const std::uint64_t later = cluster().newest_event();
  ASSERT_OK(cluster().fault("host-silent", cluster().owner_host("twin")));
  const auto again = cluster().event(later, "ready", "twin");
  ASSERT_TRUE(again);
  EXPECT_EQ((*again)["fields"].value("way", ""), "image") << again->dump();
  EXPECT_EQ(word_of("twin"), "five five ");
  expect_all_correct(*load_of_twin);
}

}  // namespace
}  // namespace yado::labtest
