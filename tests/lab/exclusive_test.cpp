// An exclusive workload through every fault: two owners never answer.

#include <atomic>
#include <thread>

#include "lab_test.hpp"
#include "os/cgroup.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
namespace {

class ExclusiveTest : public LabTest<ExclusiveTest> {
 protected:
  void deploy() {
    LAB_MUST(json spec, cluster().spec("counter", "counter", "cold", "exclusive"));
    spec["policy"]["lease_ms"] = 2000;
    ASSERT_OK(cluster().deploy(spec));
  }

  /// Who wrote rows, in the order of writing, each run of one writer once; and who became the owner, the same way.
  void check_writers(const std::vector<std::string>& owners) {
    LAB_MUST(const auto rows,
             cluster().sql("select host(writer) from counted where id like 'counter-%' order by written"));
    LAB_MUST(const json lab, cluster().lab("GET", "/v1/lab"));
    std::vector<std::string> wrote, owned;
    for (const std::string& address : rows) {
      std::string host = address;
      for (const json& one : lab["hosts"])
        if (one.value("address", "") == address) host = one.value("host", "");
      if (wrote.empty() || wrote.back() != host) wrote.push_back(host);
    }
    for (const std::string& host : owners)
      if (owned.empty() || owned.back() != host) owned.push_back(host);
    EXPECT_EQ(wrote, owned) << "rows were not written by one owner after the other";
  }
};

/// Looks, as often as it can, until the instance stands still or is gone.
class FreezeWatch {
 public:
  explicit FreezeWatch(std::string cgroup)
      : thread_([this, cgroup = std::move(cgroup)] {
          while (!stop_) {
            const auto group = os::Cgroup::open(cgroup);
            const auto frozen = group ? group->frozen() : Result<bool>(true);
            if (frozen && *frozen) {
              at_ = os::now();
              return;
            }
            std::this_thread::yield();
          }
        }) {}
  ~FreezeWatch() { stop(); }
  std::optional<Instant> stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return at_;
  }

 private:
  std::atomic<bool> stop_ = false;
  std::optional<Instant> at_;
  std::thread thread_;
};

TEST_F(ExclusiveTest, TwoOwnersNeverAnswer) {
  ASSERT_NO_FATAL_FAILURE(deploy());
  std::vector<std::string> owners{cluster().owner_host("counter")};
  // agent: killed while the link is cut as well: nobody but the supervisor is left to end the old instance.
  for (const std::string& fault :
       std::vector<std::string>{"host-silent", "process", "cut", "one-way-in", "one-way-out", "freeze", "cut+agent"}) {
    SCOPED_TRACE(fault);
    ASSERT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
    LAB_MUST(auto traffic, Traffic::start(cluster(), "counter"));
    const std::uint64_t before = cluster().epoch("counter"), since = cluster().newest_event();
    const std::string host = cluster().owner_host("counter"), instance = cluster().owner_instance("counter");
    FreezeWatch watch(cluster().cgroup(host, instance));
    const std::string kind = fault.substr(0, fault.find('+'));
    ASSERT_OK(cluster().fault(kind, host, kind == "process" ? "counter" : ""));
    if (fault == "cut+agent") ASSERT_OK(cluster().fault("agent", host));
    const auto first = traffic->answered_after(before);
    ASSERT_TRUE(first) << "nobody answers";
    EXPECT_TRUE(traffic->serves_since(first->ended));
    // Before the new owner's raise the old one stood still (or was gone).
    const auto still = watch.stop();
    const auto raise = cluster().event(since, "raise", "counter", 0s);
    ASSERT_TRUE(raise);
    ASSERT_TRUE(still) << "the old owner still runs";
    EXPECT_LT(still->time_since_epoch().count(), raise->value("at_ns", std::int64_t{0}))
        << "the old owner ran when the new one was raised";
    owners.push_back(cluster().owner_host("counter"));
    ASSERT_OK(cluster().heal(host));
    EXPECT_TRUE(cluster().wait_redundant("counter")) << cluster().why_not_redundant("counter");
    EXPECT_TRUE(traffic->serves_since(os::now()));
    const Verdict verdict = traffic->finish();
    EXPECT_TRUE(verdict.wrong.empty()) << verdict.text();
    // Whoever answered with an epoch, nobody with an older one answered a request that was sent after that.
    Instant newer = Instant::max();
    for (const drill::Sample& sample : verdict.samples)
      if (sample.epoch > before) newer = std::min(newer, sample.ended);
    for (const drill::Sample& sample : verdict.samples)
      if (sample.epoch == before) {
        EXPECT_LT(sample.due, newer) << sample.instance << " answered after its successor";
      }
  }
  check_writers(owners);
}

}  // namespace
}  // namespace yado::labtest
