#pragma once
// For tests of the virtual machine whose memory several hosts keep (examples/bigvm): its load, and its images on the hosts.

#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>

#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {

/// Requests to it, or to its clone with the host name `host`, at `gate`; null, and the test has failed.
std::unique_ptr<drill::Load> load_of_split_guest(const Endpoint& gate, const std::string& host = "big.test");
/// An owner of a later epoch than this has answered.
bool answered_after(const drill::Load& load, std::uint64_t epoch);
void expect_all_correct(drill::Load& load);

/// A script in a guest with an agent.
Ended in_guest(const Cluster& cluster, const std::string& guest, const std::string& script);
/// What it said when it succeeded, once the guest's agent, which starts beside its service, answers; else the test has failed.
std::string said_by(const Cluster& cluster, const std::string& guest, const std::string& script);

/// Incremental checkpoints of it on four hosts.
template <class Suite>
class SplitImagesTest : public LabTest<Suite> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = true, .database = false, .disk = {}, .name = {}}; }

 protected:
  using LabTest<Suite>::cluster;

  /// It runs on h1, answers, and its first image is where it should be.
  void run_under_load() {
    LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
    spec["policy"]["placement"] = {"h1", "h2", "h3", "h4"};
    ASSERT_OK(cluster().deploy(spec));
    ASSERT_EQ(cluster().owner_host("bigvm"), "h1");
    load = load_of_split_guest(cluster().gate());
    ASSERT_TRUE(load && answered_after(*load, 0));
    ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  }
  json image() { return cluster().workload("bigvm")["image"]; }
  /// Every image of it that a host's store has, also what is only begun or kept of others' (docs/formats/image.md).
  std::set<std::string> stored(const std::string& host) {
    std::set<std::string> names;
    std::error_code error;
    for (std::filesystem::recursive_directory_iterator at(cluster().host_directory(host), error), end; !error && at != end; at.increment(error))
      if (at->is_directory(error) && at->path().filename().native().find("bigvm-img.") != std::string::npos) names.insert(at->path().filename());
    return names;
  }
  /// The type of the part with its disks, in the store of its owner's host: whole, or on those of its base.
  std::string disks_of(const std::string& id) {
    std::ifstream file(cluster().host_directory(cluster().owner_host("bigvm")) / "images" / id / "manifest.json");
    const json manifest = json::parse(file, nullptr, false);
    if (manifest.is_object())
      for (const json& part : manifest["parts"])
        if (part.value("name", "") == "disk") return part.value("type", "");
    return "none";
  }
  /// All but what belongs to `newest` goes from all hosts.
  void expect_only(const std::string& newest) {
    const auto old = [&] {
      std::set<std::string> left;
      for (const char* host : {"h1", "h2", "h3", "h4"})
        for (const std::string& name : stored(host))
          if (name.find(newest) == std::string::npos) left.insert(host + (": " + name));
      return left;
    };
    EXPECT_TRUE(cluster().until([&] { return old().empty(); })) << ::testing::PrintToString(old());
  }
  /// After this fault of its main host it goes on from its image.
  void expect_raised_from_image_after(const std::string& fault) {
    const std::string host = cluster().owner_host("bigvm");
    const std::uint64_t before = cluster().epoch("bigvm"), since = cluster().newest_event();
    ASSERT_OK(cluster().fault(fault, host, fault == "process" ? "bigvm" : ""));
    ASSERT_TRUE(answered_after(*load, before));
    const auto ready = cluster().event(since, "ready", "bigvm");
    ASSERT_TRUE(ready);
    EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
    if (fault != "process") {
      EXPECT_NE(cluster().owner_host("bigvm"), host);
    }
  }

  std::unique_ptr<drill::Load> load;
};

}  // namespace yado::labtest
