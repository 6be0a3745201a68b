// kill -9 of agents, at random moments of what a VM with split memory goes through: its guest, which compares its memory all the time, is right and
// goes on, or was recovered from a complete image.
//
// Who is killed, and when, is chosen by a seed and by counts of what control has said, never by a clock.
//
//   YADO_KILLS=N   so many instead of a few            YADO_KILL_SEED=S   as a run that failed has printed it

#include <cinttypes>
#include <cstdlib>
#include <future>
#include <random>

#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {
namespace {

constexpr nanoseconds recovery = 3 * generous;

class AgentKillTest : public LabTest<AgentKillTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = true, .database = false, .disk = {}, .name = {}}; }

 protected:
  enum class During { run, checkpoint, move, moments };
  static constexpr const char* names[] = {"running", "checkpoint", "move"};

  std::size_t upto(std::size_t n) { return static_cast<std::size_t>(random_() % n); }

  std::vector<std::string> memory_hosts() {
    std::vector<std::string> hosts;
    if (const auto memory = cluster().control("GET", "/v1/workloads/bigvm/memory"))
      for (const json& server : (*memory)["servers"]) hosts.push_back(server.value("host", ""));
    return hosts;
  }
  std::string other_host(const std::string& than) {
    std::string host;
    do host = fmt::format("h{}", 1 + upto(4));
    while (host == than);
    return host;
  }
  /// The main host's more often than the others'.
  std::string choose_victim(const std::string& home, const std::string& target) {
    std::vector<std::string> hosts = memory_hosts();
    hosts.push_back(home);
    hosts.push_back(target);
    return hosts[upto(hosts.size())];
  }
  bool right_after(const drill::Load& load, std::size_t samples) {
    return load.wait_for([&](const drill::Sample& sample) { return sample.correct && sample.number >= samples; }, recovery).has_value();
  }

  void kill_one(drill::Load& load) {
    const auto during = During(upto(static_cast<std::size_t>(During::moments)));
    const std::string home = cluster().owner_host("bigvm"), target = other_host(home), victim = choose_victim(home, target);
    const std::size_t events = upto(6);
    const std::string what = fmt::format("{} to {}: the agent of {} killed during {}, after {} events", home, target, victim, names[static_cast<int>(during)], events);
    SCOPED_TRACE(what);
    std::fprintf(stderr, "%s\n", what.c_str());
    const std::uint64_t since = cluster().newest_event();
    std::future<Ended> done;
    if (during == During::checkpoint) done = std::async(std::launch::async, [&] { return cluster().yado({"checkpoint", "bigvm"}); });
    if (during == During::move) done = std::async(std::launch::async, [&] { return cluster().yado({"move", "bigvm", target}); });
    const auto is_over = [&] { return done.wait_for(std::chrono::seconds(0)) == std::future_status::ready; };
    if (done.valid()) EXPECT_TRUE(cluster().until([&] { return cluster().events(since).size() >= events || is_over(); }, recovery));
    else EXPECT_TRUE(right_after(load, load.samples().size() + events));
    ASSERT_OK(cluster().fault("agent", victim));
    if (done.valid()) (void)done.get();  // it may fail, and says so
    ASSERT_OK(cluster().heal(victim));
    EXPECT_TRUE(right_after(load, load.samples().size())) << "it does not go on";
    EXPECT_TRUE(cluster().wait_redundant("bigvm", recovery)) << cluster().why_not_redundant("bigvm");
    const json view = cluster().workload("bigvm");
    EXPECT_EQ(view.value("state", ""), "up") << view.dump();
  }

  std::mt19937_64 random_;
};

TEST_F(AgentKillTest, TheGuestIsRightOrRecoveredWhicheverAgentDiesWhenever) {
  if (const std::string why = missing_guest("memvm"); !why.empty()) GTEST_SKIP() << why;
  const std::uint64_t kills = number_from("YADO_KILLS", long_run() ? 40 : 4);
  const std::uint64_t seed = number_from("YADO_KILL_SEED", long_run() ? std::random_device()() : 1);
  std::fprintf(stderr, "YADO_KILLS=%" PRIu64 " YADO_KILL_SEED=%" PRIu64 "\n", kills, seed);
  SCOPED_TRACE(fmt::format("YADO_KILLS={} YADO_KILL_SEED={}", kills, seed));
  random_.seed(seed);
  LAB_MUST(json spec, cluster().spec("memvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3", "h4"};
  spec["vm"]["split"]["redundancy"] = "replica";
  ASSERT_OK(cluster().deploy(spec));
  drill::LoadOptions options;
  options.address = cluster().gate();
  options.host = "big.test";
  options.rate = 10;
  options.contains = " 0 wrong";
  LAB_MUST(auto load, drill::Load::start(std::move(options)));
  ASSERT_TRUE(right_after(*load, 0));
  ASSERT_TRUE(cluster().wait_redundant("bigvm", recovery)) << cluster().why_not_redundant("bigvm");
  for (std::uint64_t i = 0; i < kills && !HasFailure(); ++i) {
    SCOPED_TRACE(fmt::format("kill {}", i));
    kill_one(*load);
  }
  // It may have been away for a while; whenever it answered, its memory was as it had written it.
  for (const drill::Sample& sample : load->finish()) EXPECT_TRUE(sample.correct || sample.status != 200) << sample.number << ": " << sample.error;
}

}  // namespace
}  // namespace yado::labtest
