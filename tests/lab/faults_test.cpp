// Hosts die in every way, for every standby level, while clients go on asking. Not one GET is answered wrongly, no POST
// is counted twice, every acknowledged one is counted, and what may or may not have been counted is said to be unknown.

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "drill/timeline.hpp"
#include "lab_test.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
namespace {

struct Case {
  std::string fault, standby;
};

class FaultTest : public LabTest<FaultTest>, public ::testing::WithParamInterface<Case> {
 public:
  static void TearDownTestSuite() {
    for (const auto& [name, times] : measured) std::cout << fmt::format("{:<22} {}\n", name, fmt::join(times, "   "));
    measured.clear();
    LabTest<FaultTest>::TearDownTestSuite();
  }

 protected:
  void round();
  void note(const Verdict& verdict, const std::vector<json>& events, std::uint64_t before, Instant at,
            const std::string& host);

  static inline std::map<std::string, std::vector<std::string>> measured;
};

void FaultTest::note(const Verdict& verdict, const std::vector<json>& events, std::uint64_t before, Instant at,
                     const std::string& host) {
  std::vector<drill::Moment> moments;
  for (const json& event : events)
    if (auto moment = drill::moment_of(event)) moments.push_back(std::move(*moment));
  const auto line = drill::timeline_of(moments, verdict.samples, "counter", host, before, at);
  if (!line) return;
  measured[GetParam().standby + " " + GetParam().fault].push_back(fmt::format(
      "{}: {:.0f} = suspect {:.0f} commit {:.0f} raise {:.1f} ready {:.1f} switch {:.1f}; {} unknown, slowest {:.0f}",
      line->way, to_ms(line->recovery), to_ms(line->suspect), to_ms(line->commit), to_ms(line->raise),
      to_ms(line->ready), to_ms(line->switched), verdict.unknown, to_ms(verdict.slowest)));
}

void FaultTest::round() {
  ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
  const std::uint64_t before = cluster().epoch("counter"), since = cluster().newest_event();
  const std::string host = cluster().owner_host("counter");
  LAB_MUST(const Instant at, cluster().fault(GetParam().fault, host, GetParam().fault == "process" ? "counter" : ""));
  if (GetParam().fault == "host-silent") {
    // What the dead host held cannot be what it is raised from.
    std::error_code error;
    std::filesystem::remove_all(cluster().host_directory(host) / "images", error);
    EXPECT_FALSE(error) << error.message();
  }
  const auto first = traffic->answered_after(before);
  EXPECT_TRUE(first) << "nobody answers after " << GetParam().fault;
  EXPECT_TRUE(traffic->serves_since(first ? first->ended : at));
  // The clients stay while the host comes back and redundancy is rebuilt: nothing of the old owner may show.
  ASSERT_OK(cluster().heal(host));
  EXPECT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  EXPECT_TRUE(traffic->serves_since(os::now()));
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
  note(verdict, cluster().events(since), before, at, host);
  const auto ready = cluster().event(since, "ready", "counter", 0s);
  ASSERT_TRUE(ready);
  // On a busy machine a small application may start as fast as its image is restored; then its agent knows and says so.
  const json& fields = (*ready)["fields"];
  if (!fields.value("detail", "").starts_with(GetParam().standby + " takes ")) {
    EXPECT_EQ(fields.value("way", ""), GetParam().standby) << ready->dump();
  }
}

TEST_P(FaultTest, ClientsGetAnswersLateButRight) {
  LAB_MUST(json spec, cluster().spec("counter", "counter", GetParam().standby));
  ASSERT_OK(cluster().deploy(spec));
  for (int i = 0; i < (long_run() ? 6 : 2) && !HasFailure(); ++i) round();
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* standby : {"cold", "image", "frozen"})
    for (const char* fault : {"host-silent", "process", "cut", "one-way-in", "one-way-out", "freeze"})
      all.push_back({fault, standby});
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, FaultTest, ::testing::ValuesIn(cases()), [](const auto& one) {
  std::string name = one.param.standby + "_" + one.param.fault;
  std::ranges::replace(name, '-', '_');
  return name;
});

class LossyLinkTest : public LabTest<LossyLinkTest> {};

TEST_F(LossyLinkTest, WhatElseIsBrokenStaysSoWhenOneHostIsHealed) {
  const auto faults_of = [&](std::size_t host) { return cluster().lab("GET", "/v1/lab")->at("hosts").at(host).at("faults"); };
  ASSERT_OK(cluster().fault("lossy", "h1"));
  ASSERT_OK(cluster().fault("lossy", "h2"));
  ASSERT_OK(cluster().heal("h2"));
  EXPECT_EQ(faults_of(0), json::array({"lossy"}));
  EXPECT_EQ(faults_of(1), json::array());
  ASSERT_OK(cluster().heal("h1"));
  EXPECT_EQ(faults_of(0), json::array());
}

/// It may be relocated meanwhile, or not: nobody can tell a host that is hardly heard from a dead one.
TEST_F(LossyLinkTest, AnswersAreLateButRight) {
  LAB_MUST(json spec, cluster().spec("counter", "counter", "image"));
  ASSERT_OK(cluster().deploy(spec));
  ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
  LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
  const std::string host = cluster().owner_host("counter");
  const std::size_t before = traffic->load().samples().size();
  LAB_MUST(const Instant at, cluster().fault("lossy", host));
  EXPECT_TRUE(traffic->serves_since(at));
  EXPECT_TRUE(traffic->load().wait_for([&](const drill::Sample& sample) { return sample.number >= before + 200; }, generous));
  ASSERT_OK(cluster().heal(host));
  EXPECT_TRUE(traffic->serves_since(os::now()));
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
}

}  // namespace
}  // namespace yado::labtest
