// Frozen standbys that have stood for a minute, and for ten (`./run test --long`): their clocks, their pooled
// connections and their heart-beats are as old. They answer at once, and go on answering.

#include "drill/load.hpp"
#include "lab_test.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
namespace {

constexpr nanoseconds watched_after = 5s;  // gunicorn looks for workers that missed their heart-beat every second

class AgeTest : public LabTest<AgeTest>, public ::testing::WithParamInterface<int> {
 protected:
  void SetUp() override {
    LabTest<AgeTest>::SetUp();
    if (GetParam() > 1 && !long_run()) GTEST_SKIP() << "./run test --long";
  }
  void deploy(const std::string& example, const std::string& name) {
    LAB_MUST(json spec, cluster().spec(example, name, "frozen"));
    spec["policy"]["frozen_age_ms"] = 3'600'000;
    spec["policy"]["placement"] = {"h1", "h2", "h3"};
    ASSERT_OK(cluster().deploy(spec));
    ASSERT_TRUE(cluster().wait_redundant(name)) << cluster().why_not_redundant(name);
  }
  milliseconds standby_age(const std::string& name) {
    const json view = cluster().workload(name);
    return milliseconds(view["standby"].is_object() ? view["standby"].value("age_ms", std::int64_t{0}) : 0);
  }
};

TEST_P(AgeTest, AStandbyOfThisManyMinutesAnswersAtOnceAndGoesOn) {
  const auto age = std::chrono::minutes(GetParam());
  ASSERT_NO_FATAL_FAILURE(deploy("counter", "counter"));
  ASSERT_NO_FATAL_FAILURE(deploy("django", "site"));
  ASSERT_TRUE(cluster().until([&] { return standby_age("counter") >= age && standby_age("site") >= age; }, 2 * age))
      << "the standbys are younger than that: somebody made them anew";

  drill::LoadOptions pages;
  pages.address = cluster().gate();
  pages.host = "site.test";
  pages.contains = "<h1";
  LAB_MUST(auto site, drill::Load::start(std::move(pages)));
  LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
  const std::uint64_t before = cluster().epoch("counter"), site_before = cluster().epoch("site");
  const std::uint64_t since = cluster().newest_event();
  ASSERT_EQ(cluster().owner_host("counter"), "h1");
  ASSERT_EQ(cluster().owner_host("site"), "h1");
  ASSERT_OK(cluster().fault("host-silent", "h1"));
  const auto first = traffic->answered_after(before);
  ASSERT_TRUE(first);
  EXPECT_TRUE(
      site->wait_for([&](const drill::Sample& one) { return one.correct && one.epoch > site_before; }, generous));
  EXPECT_TRUE(traffic->serves_since(first->ended + watched_after));
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
  for (const drill::Sample& one : site->finish()) EXPECT_TRUE(one.correct) << one.number << ": " << one.error;
  for (const char* name : {"counter", "site"}) {
    const auto ready = cluster().event(since, "ready", name);
    ASSERT_TRUE(ready) << name;
    EXPECT_EQ((*ready)["fields"].value("way", ""), "frozen") << ready->dump();
  }
  const std::uint64_t dead = cluster().newest_event();
  ASSERT_OK(cluster().heal("h1"));
  // The next one wants its owners there.
  EXPECT_TRUE(cluster().event(dead, [](const json& event) { return event.value("kind", "") == "host-joined" && event.value("host", "") == "h1"; }));
  for (const char* name : {"counter", "site"})
    ASSERT_OK(cluster().control("DELETE", std::string("/v1/workloads/") + name));
}
INSTANTIATE_TEST_SUITE_P(Minutes, AgeTest, ::testing::Values(1, 10),
                         [](const auto& one) { return std::to_string(one.param); });

}  // namespace
}  // namespace yado::labtest
