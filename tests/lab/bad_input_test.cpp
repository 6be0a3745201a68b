// What goes wrong without anybody's host dying: specs that cannot work, images that are damaged, full disks, agents
// that are killed, no CRIU. A clear error, nothing lost, and the service goes on.

#include <filesystem>
#include <fstream>

#include "lab_test.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
namespace {

namespace fs = std::filesystem;

/// The largest file of an image's part: memory pages.
fs::path pages_of(const Cluster& cluster, const std::string& host, const std::string& image) {
  fs::path largest;
  std::uintmax_t bytes = 0;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(cluster.host_directory(host) / "images", ignored))
    if (entry.is_regular_file() && entry.path().native().find(image) != std::string::npos && entry.file_size() > bytes)
      largest = entry.path(), bytes = entry.file_size();
  return largest;
}

std::string image_of(const Cluster& cluster, const std::string& name) {
  const json view = cluster.workload(name);
  return view.contains("image") && view["image"].is_object() ? view["image"].value("id", "") : "";
}

class BadInputTest : public LabTest<BadInputTest> {
 protected:
  void TearDown() override {
    LabTest<BadInputTest>::TearDown();
    if (!shared) return;
    (void)cluster().lab("POST", "/v1/heal", json::object());
    for (const char* name : {"counter", "broken"})
      (void)cluster().control("DELETE", std::string("/v1/workloads/") + name);
  }
  void dies_with_damaged_images(const std::function<void(const fs::path&)>& damage) {
    LAB_MUST(const json spec, cluster().spec("counter", "counter", "image"));
    ASSERT_OK(cluster().deploy(spec));
    ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
    const std::string image = image_of(cluster(), "counter"), host = cluster().owner_host("counter");
    int damaged = 0;
    for (const char* one : {"h1", "h2", "h3"})
      if (const fs::path pages = pages_of(cluster(), one, image); !pages.empty()) damage(pages), ++damaged;
    ASSERT_GE(damaged, 2);
    LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
    const std::uint64_t before = cluster().epoch("counter"), since = cluster().newest_event();
    ASSERT_OK(cluster().fault("host-silent", host));
    EXPECT_TRUE(traffic->answered_after(before));
    const auto ready = cluster().event(since, "ready", "counter");
    ASSERT_TRUE(ready);
    EXPECT_EQ((*ready)["fields"].value("way", ""), "cold");
    EXPECT_NE((*ready)["fields"].value("detail", "").find("image"), std::string::npos) << ready->dump();
    ASSERT_OK(cluster().heal(host));
    EXPECT_TRUE(cluster().wait_redundant("counter")) << "no new image: " << cluster().why_not_redundant("counter");
    EXPECT_NE(image_of(cluster(), "counter"), image) << "the damaged image still counts";
    const Verdict verdict = traffic->finish();
    EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
  }
};

TEST_F(BadInputTest, ARootWithoutTheProgramIsNamed) {
  LAB_MUST(json spec, cluster().spec("counter", "broken", "cold"));
  spec["container"]["command"] = {"/usr/bin/no-such-program"};
  const auto route = cluster().deploy(spec);
  ASSERT_FALSE(route);
  EXPECT_NE(route.error().message.find("no-such-program"), std::string::npos) << route.error().text();
}

TEST_F(BadInputTest, AnApplicationThatNeverGetsReadyIsQuoted) {
  LAB_MUST(json spec, cluster().spec("counter", "broken", "cold"));
  spec["container"]["command"] = {"/usr/bin/python3", "-c",
                                  "import time; print('waiting for the moon', flush=True); time.sleep(600)"};
  spec["service"]["ready"]["start_limit_ms"] = 2000;
  const auto route = cluster().deploy(spec);
  ASSERT_FALSE(route);
  EXPECT_NE(route.error().message.find("waiting for the moon"), std::string::npos) << route.error().text();
}

TEST_F(BadInputTest, AnApplicationThatExitsIsQuoted) {
  LAB_MUST(json spec, cluster().spec("counter", "broken", "cold"));
  spec["container"]["command"] = {"/usr/bin/python3", "-c", "raise SystemExit('no configuration')"};
  const auto route = cluster().deploy(spec);
  ASSERT_FALSE(route);
  EXPECT_NE(route.error().message.find("no configuration"), std::string::npos) << route.error().text();
}

TEST_F(BadInputTest, ImagesWithFlippedBitsAreRefusedAndReplaced) {
  dies_with_damaged_images([](const fs::path& pages) {
    std::fstream file(pages, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(4096 + 17);
    const char byte = static_cast<char>(file.get());
    file.seekp(4096 + 17);
    file.put(static_cast<char>(byte ^ 0x10));
  });
}

TEST_F(BadInputTest, ImagesCutShortAreRefusedAndReplaced) {
  dies_with_damaged_images([](const fs::path& pages) { fs::resize_file(pages, fs::file_size(pages) / 2); });
}

TEST_F(BadInputTest, AKilledAgentAdoptsWhatRuns) {
  LAB_MUST(const json spec, cluster().spec("counter", "counter", "frozen"));
  ASSERT_OK(cluster().deploy(spec));
  ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
  const json before = cluster().workload("counter");
  for (const char* role : {"owner", "standby"}) {
    const std::string host = before[role].value("host", "");
    ASSERT_OK(cluster().fault("agent", host));
    EXPECT_TRUE(traffic->serves_since(os::now())) << "the instance needs its agent";
    ASSERT_OK(cluster().heal(host));
    EXPECT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  }
  EXPECT_TRUE(traffic->serves_since(os::now()));
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
  EXPECT_EQ(verdict.unknown, 0u);
  LAB_MUST(const Ended logs, Result<Ended>(cluster().yado({"logs", "counter"})));
  EXPECT_EQ(logs.status, 0) << logs.output;
}

// ---- a disk of its own ---------------------------------------------------------------------------------------------

class FullDiskTest : public LabTest<FullDiskTest> {
 public:
  static ClusterOptions cluster_options() { return {.disk = "256MB"}; }
};

TEST_F(FullDiskTest, ACheckpointOnAFullDiskFailsAndTheOldImageStays) {
  LAB_MUST(const json spec, cluster().spec("counter", "counter", "image"));
  ASSERT_OK(cluster().deploy(spec));
  ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
  const json before = cluster().workload("counter");
  const std::string owner = before["owner"].value("host", "");
  for (const char* host : {"h1", "h2", "h3"})
    if (host != owner) ASSERT_OK(cluster().fault("disk-full", host));
  const std::uint64_t since = cluster().newest_event();
  ASSERT_OK(cluster().control("POST", "/v1/workloads/counter/checkpoint"));
  const auto failed = cluster().event(since, "image-failed", "counter");
  ASSERT_TRUE(failed) << "the checkpoint succeeded on a full disk";
  EXPECT_NE(failed->dump().find("space"), std::string::npos) << failed->dump();
  EXPECT_EQ(image_of(cluster(), "counter"), before["image"].value("id", "")) << "the old image is gone";
  ASSERT_OK(cluster().lab("POST", "/v1/heal", json::object()));
  EXPECT_TRUE(cluster().event(since, "image", "counter")) << "no image after the disk was freed";
  EXPECT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  const std::uint64_t epoch = cluster().epoch("counter");
  ASSERT_OK(cluster().fault("host-silent", owner));
  EXPECT_TRUE(traffic->answered_after(epoch));
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
}

// ---- without CRIU --------------------------------------------------------------------------------------------------

class NoCriuTest : public LabTest<NoCriuTest>,
                   public ::testing::WithParamInterface<std::pair<const char*, const char*>> {
 public:
  static ClusterOptions cluster_options() { return {.criu = false}; }
};

TEST_P(NoCriuTest, ColdStartsAndStartedThenFrozenStandbysGoOn) {
  const auto [standby, way] = GetParam();
  LAB_MUST(const json spec, cluster().spec("counter", "counter", standby));
  ASSERT_OK(cluster().deploy(spec));
  ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
  const std::uint64_t before = cluster().epoch("counter"), since = cluster().newest_event();
  const std::string host = cluster().owner_host("counter");
  ASSERT_OK(cluster().fault("host-silent", host));
  EXPECT_TRUE(traffic->answered_after(before));
  const auto ready = cluster().event(since, "ready", "counter");
  ASSERT_TRUE(ready);
  EXPECT_EQ((*ready)["fields"].value("way", ""), way) << ready->dump();
  ASSERT_OK(cluster().heal(host));
  EXPECT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
}
INSTANTIATE_TEST_SUITE_P(Levels, NoCriuTest,
                         ::testing::Values(std::pair("image", "cold"), std::pair("frozen", "frozen")),
                         [](const auto& one) { return std::string(one.param.first); });

}  // namespace
}  // namespace yado::labtest
