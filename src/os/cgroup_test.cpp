#include "os/cgroup.hpp"

#include <atomic>
#include <csignal>
#include <filesystem>
#include <functional>
#include <thread>

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/testing.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"
#include "os/process.hpp"

extern "C" int umount2(const char*, int) noexcept;

namespace yado::os {
namespace {


/// Runs on a thread that sees every cgroup tree, or none of version 2: then the v1 freezer has to do.
void run_seeing(bool v2, const std::function<void()>& body) {
  std::thread([&] {
    if (!v2) {
      ASSERT_OK(enter_private_mounts());
      const auto mounts = read_text("/proc/thread-self/mountinfo");
      ASSERT_OK(mounts);
      for (std::size_t at = 0; (at = mounts->find(" - cgroup2 ", at)) != std::string::npos; ++at) {
        const std::size_t line = mounts->rfind('\n', at) == std::string::npos ? 0 : mounts->rfind('\n', at) + 1;
        std::size_t field = line;
        for (int i = 0; i < 4; ++i) field = mounts->find(' ', field) + 1;
        ::umount2(mounts->substr(field, mounts->find(' ', field) - field).c_str(), 2 /* MNT_DETACH */);
      }
    }
    body();
  }).join();
}

class CgroupTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: cgroups are made";
    if (!GetParam() && !std::filesystem::exists("/sys/fs/cgroup/freezer"))
      GTEST_SKIP() << "needs the v1 freezer, which this machine does not mount";
  }
  static Result<Process> sleeper() {
    Spawn options;
    options.arguments = {"/bin/sh", "-c", "while :; do :; done"};
    return spawn(options);
  }
  std::string name_ = fmt::format("yado-test-{}/group", ::getpid());
};

TEST_P(CgroupTest, FreezesConfirmsThawsAndAccounts) {
  run_seeing(GetParam(), [&] {
    auto process = sleeper();  // before the group: what a v1 freezer holds cannot die, so it is reaped after the group
    ASSERT_OK(process);
    auto group = Cgroup::create(name_);
    ASSERT_OK(group);
    ASSERT_OK(group->add(process->pidfd().pid()));
    ASSERT_OK(group->freeze(10s));
    EXPECT_TRUE(group->frozen().value_or(false));
    const nanoseconds before = group->use()->cpu;
    std::this_thread::sleep_for(50ms);  // a busy loop would show
    EXPECT_EQ(group->use()->cpu, before);
    ASSERT_OK(group->thaw());
    const Instant deadline = now() + 10s;
    while (group->use()->cpu == before && now() < deadline) std::this_thread::sleep_for(1ms);
    EXPECT_GT(group->use()->cpu, before);
  });
}

TEST_P(CgroupTest, ProcessesAreSlowedDownForAWhile) {
  run_seeing(GetParam(), [&] {
    auto process = sleeper();
    ASSERT_OK(process);
    auto group = Cgroup::create(name_);
    ASSERT_OK(group);
    if (const Status limited = group->limit_cpus(0.01); !limited && limited.error().code == Errc::unsupported)
      GTEST_SKIP() << limited.error().text();  // v2 without it
    ASSERT_OK(group->add(process->pidfd().pid()));
    // However much the machine has to do: of any stretch of time no more than this share, and a turn at its edge.
    const Instant begun = now();
    const nanoseconds before = group->use()->cpu;
    const auto used = [&] { return group->use()->cpu - before; };
    std::this_thread::sleep_for(500ms);
    const nanoseconds slow = used();
    EXPECT_LT(slow, (now() - begun) / 10);
    ASSERT_OK(group->limit_cpus(0));
    const Instant deadline = now() + 30s;
    while (used() < slow + 300ms && now() < deadline) std::this_thread::sleep_for(1ms);  // at one hundredth: in 30 s
    EXPECT_LT(now(), deadline);
  });
}

TEST_P(CgroupTest, AFrozenChildGroupStaysWhenTheGroupThaws) {
  run_seeing(GetParam(), [&] {
    auto held = sleeper();  // before the group: what a v1 freezer holds cannot die, so it is reaped after the group
    ASSERT_OK(held);
    auto group = Cgroup::create(name_);
    ASSERT_OK(group);
    ASSERT_OK(group->add(held->pidfd().pid()));
    ASSERT_OK(group->freeze(10s));
    auto child = group->freezer_child("held");
    ASSERT_OK(child);
    ASSERT_OK(child->add_to_freezer(held->pidfd().pid()));
    (void)child->freeze(0ns);
    ASSERT_OK(group->thaw());
    EXPECT_TRUE(child->frozen().value_or(false));
    EXPECT_FALSE(group->frozen().value_or(true));
    child->release();
  });
}

TEST_P(CgroupTest, RemoveKillsTheFrozenTooAndLeavesNoDirectory) {
  run_seeing(GetParam(), [&] {
    auto process = sleeper();  // before the group: what a v1 freezer holds cannot die, so it is reaped after the group
    ASSERT_OK(process);
    auto group = Cgroup::create(name_);
    ASSERT_OK(group);
    ASSERT_OK(group->add(process->pidfd().pid()));
    ASSERT_OK(group->freeze(10s));
    ASSERT_OK(group->remove());
    const auto ended = process->wait(10s);
    ASSERT_OK(ended);
    ASSERT_TRUE(ended->has_value());
    EXPECT_EQ((*ended)->signal, SIGKILL);
    EXPECT_FALSE(Cgroup::open(name_).has_value());
    EXPECT_FALSE(Cgroup::open(std::filesystem::path(name_).parent_path()).has_value());
  });
}

/// Whoever kills it need not be who removes it: what is gone between the open and the read (ENODEV) has no processes.
TEST_P(CgroupTest, AGroupThatIsRemovedMeanwhileHasNoProcesses) {
  run_seeing(GetParam(), [&] {
    std::atomic<bool> over{false};
    Status listed;
    std::thread reader([&] {
      while (!over && listed)
        if (auto group = Cgroup::open(name_))
          if (auto all = group->processes(); !all) listed = std::unexpected(all.error());
    });
    for (int i = 0; i < 500 && !HasFailure(); ++i) {
      auto group = Cgroup::create(name_);
      EXPECT_OK(group);
      if (group) EXPECT_OK(group->remove());
    }
    over = true;
    reader.join();
    EXPECT_OK(listed);
  });
}

TEST_P(CgroupTest, AGroupWithProcessesIsNotTakenOver) {
  run_seeing(GetParam(), [&] {
    auto process = sleeper();  // before the group: what a v1 freezer holds cannot die, so it is reaped after the group
    ASSERT_OK(process);
    auto group = Cgroup::create(name_);
    ASSERT_OK(group);
    ASSERT_OK(group->add(process->pidfd().pid()));
    const auto second = Cgroup::create(name_);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Errc::conflict);
  });
}

INSTANTIATE_TEST_SUITE_P(Freezers, CgroupTest, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Preferred" : "VersionOne"; });

}  // namespace
}  // namespace yado::os
