// A virtual machine on several hosts that is checkpointed incrementally: a chain of images, what is raised from it, and its end.

#include <cstdlib>
#include <filesystem>

#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {
namespace {

class SplitChainTest : public LabTest<SplitChainTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = true, .database = false, .disk = {}, .name = {}}; }

 protected:
  /// Every image that a host's store has, also what is only begun or kept of others' (docs/formats/image.md).
  std::set<std::string> stored(const std::string& host) {
    std::set<std::string> names;
    std::error_code error;
    for (std::filesystem::recursive_directory_iterator at(cluster().host_directory(host), error), end; !error && at != end; at.increment(error))
      if (at->is_directory(error) && at->path().filename().native().find("bigvm-img.") != std::string::npos) names.insert(at->path().filename());
    return names;
  }
  std::string image() { return cluster().workload("bigvm")["image"].value("id", ""); }
};

TEST_F(SplitChainTest, AChainOfIncrementalCheckpointsIsRaisedFromAndEndsWithTheNextFullOne) {
  const char* guests = std::getenv("YADO_GUESTS");
  std::error_code ignored;
  if (!guests || !std::filesystem::exists(std::filesystem::path(guests) / "vmweb/kernel", ignored))
    GTEST_SKIP() << "needs the guest vmweb: tools/make-guest vmweb $YADO_GUESTS/vmweb";
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3", "h4"};
  LAB_OK(cluster().deploy(spec));
  ASSERT_EQ(cluster().owner_host("bigvm"), "h1");
  drill::LoadOptions options;
  options.address = cluster().gate();
  options.host = "big.test";
  options.path = "/";
  options.contains = "virtual machine";
  LAB_MUST(auto load, drill::Load::start(std::move(options)));
  const auto answered_after = [&](std::uint64_t epoch) {
    return load->wait_for([&](const drill::Sample& sample) { return sample.correct && sample.epoch > epoch; }, generous);
  };
  ASSERT_TRUE(answered_after(0));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");

  // One full image and three deltas, under load.
  std::vector<std::string> chain{image()};
  for (int i = 0; i < 3; ++i) {
    const Ended taken = cluster().yado({"checkpoint", "bigvm", "--incremental"});
    ASSERT_EQ(taken.status, 0) << taken.output;
    EXPECT_NE(taken.output.find("delta of " + chain.back()), std::string::npos) << taken.output;
    EXPECT_NE(taken.output.find("standing still for"), std::string::npos) << taken.output;
    chain.push_back(image());
  }
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const json view = cluster().workload("bigvm")["image"];
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
  // copies of the whole chain, on another one, which has another share of the memory on another host.
  for (const char* fault : {"process", "host-silent"}) {
    const std::uint64_t before = cluster().epoch("bigvm");
    const std::uint64_t since = cluster().newest_event();
    LAB_OK(cluster().fault(fault, "h1", std::string(fault) == "process" ? "bigvm" : ""));
    ASSERT_TRUE(answered_after(before)) << fault;
    const auto ready = cluster().event(since, "ready", "bigvm");
    ASSERT_TRUE(ready);
    EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
    EXPECT_EQ(image(), chain.back());
    LAB_MUST(const json memory, cluster().control("GET", "/v1/workloads/bigvm/memory"));
    std::set<std::string> keepers;
    for (const json& server : memory["servers"]) keepers.insert(server.value("host", ""));
    const bool same = std::string(fault) == "process";
    EXPECT_EQ(cluster().owner_host("bigvm") == "h1", same);
    EXPECT_EQ(keepers == (std::set<std::string>{"h2", "h3"}), same) << memory.dump();
  }
  LAB_OK(cluster().heal("h1"));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");

  // Another life counts no changes from what the one before saved. With its own full image all of the old chain goes, everywhere.
  const Ended full = cluster().yado({"checkpoint", "bigvm", "--incremental"});
  ASSERT_EQ(full.status, 0) << full.output;
  EXPECT_NE(full.output.find("all of it, because " + chain.back()), std::string::npos) << full.output;
  const std::string newest = image();
  EXPECT_TRUE(cluster().workload("bigvm")["image"]["bases"].empty());
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const auto left = [&] {
    std::set<std::string> old;
    for (const char* host : {"h1", "h2", "h3", "h4"})
      for (const std::string& name : stored(host))
        if (name.find(newest) == std::string::npos) old.insert(host + (": " + name));
    return old;
  };
  EXPECT_TRUE(cluster().until([&] { return left().empty(); })) << ::testing::PrintToString(left());
  for (const drill::Sample& sample : load->finish()) EXPECT_TRUE(sample.correct) << sample.number << ": " << sample.error;
}

}  // namespace
}  // namespace yado::labtest
