// A virtual machine on several hosts whose chain of incremental images grows: its hosts merge it while it runs, and it is raised from what comes of it.

#include <cstdlib>
#include <filesystem>

#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {
namespace {

class SplitMergeTest : public LabTest<SplitMergeTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = true, .database = false, .disk = {}, .name = {}}; }

 protected:
  std::set<std::string> stored(const std::string& host) {
    std::set<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator at(cluster().host_directory(host) / "images", error), end; !error && at != end; at.increment(error))
      if (at->path().filename().native().find("bigvm-img.") != std::string::npos) names.insert(at->path().filename());
    return names;
  }
  json image() { return cluster().workload("bigvm")["image"]; }
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
  const auto old = [&] {
    std::set<std::string> left;
    for (const char* host : {"h1", "h2", "h3", "h4"})
      for (const std::string& name : stored(host))
        if (name.find(newest) == std::string::npos) left.insert(host + (": " + name));
    return left;
  };
  EXPECT_TRUE(cluster().until([&] { return old().empty(); })) << ::testing::PrintToString(old());
  const Ended shown = cluster().yado({"images", "show", "bigvm", "--verify", "--json"});
  ASSERT_EQ(shown.status, 0) << shown.output;
  const json seen = json::parse(shown.output, nullptr, false);
  EXPECT_TRUE(seen.value("merged", false)) << shown.output;
  EXPECT_EQ(seen["chain"].size(), 1u) << shown.output;
  for (const json& copy : seen["copies"]) EXPECT_TRUE(copy.contains("verified")) << copy.dump();

  // It is what the next one goes on from.
  ASSERT_NO_FATAL_FAILURE(checkpoint());
  EXPECT_EQ(image()["bases"], json(std::vector<std::string>{newest}));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");

  // And what is raised from: on the hosts that saved it, then from the copies on another one.
  for (const char* fault : {"process", "host-silent"}) {
    const std::uint64_t before = cluster().epoch("bigvm");
    const std::uint64_t since = cluster().newest_event();
    LAB_OK(cluster().fault(fault, "h1", std::string(fault) == "process" ? "bigvm" : ""));
    ASSERT_TRUE(answered_after(before)) << fault;
    const auto ready = cluster().event(since, "ready", "bigvm");
    ASSERT_TRUE(ready);
    EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
    EXPECT_EQ(cluster().owner_host("bigvm") == "h1", std::string(fault) == "process");
  }
  LAB_OK(cluster().heal("h1"));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  for (const drill::Sample& sample : load->finish()) EXPECT_TRUE(sample.correct) << sample.number << ": " << sample.error;
}

}  // namespace
}  // namespace yado::labtest
