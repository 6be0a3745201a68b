// Control is dead while hosts die: the gate moves shared workloads by the ranking it was given, and control adopts what
// it finds when it comes back.

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "lab_test.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::labtest {
namespace {

class ControlTest : public LabTest<ControlTest> {
 protected:
  void die_without_control(const std::string& standby) {
    LAB_MUST(const json spec, cluster().spec("counter", "counter", standby));
    ASSERT_OK(cluster().deploy(spec));
    ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
    LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
    const std::uint64_t before = cluster().epoch("counter"), since = cluster().newest_event();
    const std::string host = cluster().owner_host("counter");
    ASSERT_OK(cluster().fault("control", ""));
    ASSERT_OK(cluster().fault("host-silent", host));
    const auto first = traffic->answered_after(before);
    ASSERT_TRUE(first) << "nobody answers without control";
    EXPECT_NE(first->epoch & 0xff, 0u) << "this epoch is not a gate's";
    EXPECT_TRUE(traffic->serves_since(first->ended));
    ASSERT_OK(cluster().heal("front"));
    EXPECT_TRUE(cluster().event(since, "adopted", "counter"));
    EXPECT_TRUE(cluster().until([&] { return cluster().epoch("counter") == first->epoch; }));
    EXPECT_EQ("counter@" + cluster().owner_host("counter"), first->instance);
    ASSERT_OK(cluster().heal(host));
    EXPECT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
    EXPECT_EQ(cluster().epoch("counter"), first->epoch) << "what was adopted was moved again";
    EXPECT_TRUE(traffic->serves_since(os::now()));
    const Verdict verdict = traffic->finish();
    EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
  }
};

TEST_F(ControlTest, TheGateMovesToAFrozenStandbyAndControlAdoptsIt) { die_without_control("frozen"); }
TEST_F(ControlTest, TheGateRestoresAnImageAndControlAdoptsIt) { die_without_control("image"); }

/// Of the lab's control.
pid_t control_process(const Cluster& cluster) {
  const std::string wanted = "control" + std::string(1, '\0') + "--state" + std::string(1, '\0') + cluster.directory().native();
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const auto command = os::read_text(entry.path() / "cmdline");
    if (command && command->find(wanted) != std::string::npos) return std::atoi(entry.path().filename().c_str());
  }
  return 0;
}

TEST_F(ControlTest, ThatDiesByItselfIsStartedAgainAndGoesOnKeepingThings) {
  for (const char* name : {"first", "second"}) {
    const pid_t before = control_process(cluster());
    ASSERT_GT(before, 0);
    ::kill(before, SIGKILL);
    LAB_MUST(json spec, cluster().spec("counter", name, "cold"));
    ASSERT_TRUE(cluster().until([&] { return cluster().deploy(spec).has_value(); })) << name;
    EXPECT_NE(control_process(cluster()), before);
  }
  ::kill(control_process(cluster()), SIGKILL);
  EXPECT_TRUE(cluster().until([&] { return cluster().workload("first").value("state", "") == "up" &&
                                           cluster().workload("second").value("state", "") == "up"; }));
}

TEST_F(ControlTest, KilledAtAnyMomentOfAFailoverItLosesNothing) {
  LAB_MUST(const json spec, cluster().spec("counter", "counter", "frozen"));
  ASSERT_OK(cluster().deploy(spec));
  // The moment is an event of the failover, or a random time after the fault: each is somebody's bad luck.
  std::mt19937 random(7);
  const std::vector<std::string> moments{"grant", "raise", "ready", "standby"};
  const int rounds = long_run() ? 20 : 4;
  for (int i = 0; i < rounds && !HasFailure(); ++i) {
    ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
    LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
    const std::uint64_t before = cluster().epoch("counter"), since = cluster().newest_event();
    const std::string host = cluster().owner_host("counter"), moment = moments[random() % moments.size()];
    ASSERT_OK(cluster().fault("host-silent", host));
    EXPECT_TRUE(cluster().event(since, moment, "counter")) << moment << " never came";
    ASSERT_OK(cluster().fault("control", ""));
    EXPECT_TRUE(traffic->answered_after(before)) << "control died at " << moment;
    ASSERT_OK(cluster().heal("front"));
    ASSERT_OK(cluster().heal(host));
    EXPECT_TRUE(cluster().wait_redundant("counter"))
        << "control died at " << moment << ": " << cluster().why_not_redundant("counter");
    EXPECT_TRUE(traffic->serves_since(os::now()));
    const Verdict verdict = traffic->finish();
    EXPECT_TRUE(verdict.wrong.empty()) << "control died at " << moment << ": " << verdict.text();
  }
}

}  // namespace
}  // namespace yado::labtest
