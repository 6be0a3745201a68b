// Thirty services live on one host, and it dies while each of them is asked.

#include "lab_test.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
namespace {

class CrowdTest : public LabTest<CrowdTest> {};

TEST_F(CrowdTest, ThirtyServicesOfADyingHostAnswerAgain) {
  constexpr int services = 30;
  std::vector<std::string> names;
  for (int i = 1; i <= services; ++i) {
    const std::string name = fmt::format("counter{}", i);
    LAB_MUST(json spec, cluster().spec("counter", name, "image"));
    spec["container"]["memory_bytes"] = 64 << 20;
    spec["policy"]["placement"] = {"h1", "h2", "h3"};
    ASSERT_OK(cluster().deploy(spec));
    EXPECT_EQ(cluster().owner_host(name), "h1");
    names.push_back(name);
  }
  for (const std::string& name : names)
    ASSERT_TRUE(cluster().wait_redundant(name, 2 * generous)) << name << ": " << cluster().why_not_redundant(name);
  std::vector<std::unique_ptr<Traffic>> all;
  std::vector<std::uint64_t> epochs;
  for (const std::string& name : names) {
    LAB_MUST(auto traffic, Traffic::start(cluster(), name, 2, 0.5));
    all.push_back(std::move(traffic));
    epochs.push_back(cluster().epoch(name));
  }
  LAB_MUST(const Instant at, cluster().fault("host-silent", "h1"));
  for (int i = 0; i < services; ++i) {
    EXPECT_TRUE(all[i]->answered_after(epochs[i])) << names[i];
    EXPECT_TRUE(all[i]->serves_since(at)) << names[i];
  }
  nanoseconds slowest{0};
  std::size_t unknown = 0;
  for (auto& traffic : all) {
    const Verdict verdict = traffic->finish();
    EXPECT_TRUE(verdict.wrong.empty()) << traffic->prefix() << ": " << verdict.text();
    slowest = std::max(slowest, verdict.slowest);
    unknown += verdict.unknown;
  }
  std::cout << fmt::format("30 services on the dying host: slowest answer of all {:.0f} ms, {} unknown outcomes\n",
                           to_ms(slowest), unknown);
}

}  // namespace
}  // namespace yado::labtest
