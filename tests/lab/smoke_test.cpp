// What the README shows by hand: a lab starts, a counter is deployed by `yado run`, answers through the gate, is seen
// by `yado ps`, and when the lab ends nothing of it is left.

#include <fmt/ranges.h>

#include "lab_test.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
namespace {

TEST(SmokeTest, ACounterIsDeployedAndAnswersAndNothingIsLeft) {
  LAB_MUST(auto cluster, Cluster::start());
  const std::string name = cluster->name();
  ::setenv("YADO_DATABASE_HOST", "10.77.0.2", 1);
  const Ended run = cluster->yado({"run", std::string(std::getenv("YADO_SOURCE")) + "/examples/counter/counter.toml"});
  EXPECT_EQ(run.status, 0) << run.output << cluster->last_words();
  LAB_MUST(const Ended asked, cluster->exec("front", {"curl", "-sS", "-i", "-m", "20", "-H", "Host: counter.test",
                                                      "http://10.77.0.2/count"}));
  EXPECT_NE(asked.output.find("200 OK"), std::string::npos) << asked.output;
  EXPECT_NE(asked.output.find("\n0\n"), std::string::npos) << asked.output;
  const Ended ps = cluster->yado({"ps"});
  EXPECT_NE(ps.output.find(cluster->owner_host("counter")), std::string::npos) << ps.output;
  EXPECT_NE(ps.output.find("counter.1"), std::string::npos) << ps.output;
  EXPECT_TRUE(cluster->wait_redundant("counter")) << cluster->why_not_redundant("counter") << cluster->last_words();

  const Traces traces = traces_of(cluster->pid());
  EXPECT_GE(traces.namespaces.size(), 4u * 4) << "the check sees no namespaces of the lab";
  EXPECT_TRUE(cluster->end());
  expect_nothing_left(name, traces);
}

TEST(SmokeTest, ALabWhoseProcessIsKilledLeavesNothingRunningAndIsSweptByTheNext) {
  ClusterOptions bare;
  bare.database = false;
  LAB_MUST(auto killed, Cluster::start(bare));
  const std::string name = killed->name();
  const Traces traces = traces_of(killed->pid());
  killed->kill_all_roles();
  const Instant ended = os::now();
  // The kernel kills what was in its namespaces; it tells nobody when it is through.
  std::vector<std::string> running;
  while (!(running = running_leftovers(name, traces, ended)).empty() && os::now() < ended + generous)
    std::this_thread::sleep_for(5ms);
  EXPECT_TRUE(running.empty()) << fmt::format("{}", fmt::join(running, "\n"));
  LAB_MUST(auto next, Cluster::start(bare));
  const auto files = files_left(name);
  EXPECT_TRUE(files.empty()) << fmt::format("{}", fmt::join(files, "\n"));
}

TEST(SmokeTest, TwoLabsStandSideBySide) {
  LAB_MUST(auto one, Cluster::start());
  LAB_MUST(auto other, Cluster::start());
  for (Cluster* lab : {one.get(), other.get()}) {
    LAB_MUST(const json spec, lab->spec("counter", "counter", "cold"));
    ASSERT_OK(lab->deploy(spec));
  }
  LAB_MUST(auto traffic, Traffic::start(*one, "counter"));
  const std::uint64_t epoch = other->epoch("counter");
  const std::uint64_t before = one->epoch("counter");
  ASSERT_OK(one->fault("host-silent", one->owner_host("counter")));
  EXPECT_TRUE(traffic->answered_after(before)) << one->last_words();
  const Verdict verdict = traffic->finish();
  EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
  EXPECT_EQ(other->epoch("counter"), epoch) << "the other lab's workload moved as well";
}

}  // namespace
}  // namespace yado::labtest
