// A real guest with qemu-guest-agent: the example vmweb.
#include <fstream>

#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "os/clock.hpp"
#include "os/process.hpp"
#include "workload/vm/pages_memory.hpp"
#include "workload/vm/testing.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using namespace testing;


class AgentVmProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    if (guest("vmweb").empty()) GTEST_SKIP() << "needs the guest vmweb: tools/make-guest vmweb $YADO_GUESTS/vmweb";
    spec_.name = "vmweb";
    spec_.kernel = guest("vmweb") / "kernel";
    spec_.initramfs = guest("vmweb") / "initramfs";
    spec_.kernel_command_line = "console=ttyS0 quiet init=/srv/init";
    spec_.memory_bytes = 256_MiB;
    spec_.disks = {guest("vmweb") / "disk.qcow2"};
    auto started = Vm::start(spec_, place("a"), qemu());
    ASSERT_OK(started);
    vm_.emplace(std::move(*started));
    ASSERT_OK(vm_->console().wait_for("GUEST starts nginx", hang));
    for (bool there = false; !there;) {  // QEMU says when its port is opened
      const auto has = vm_->has_agent();
      ASSERT_OK(has);
      there = *has;
      (void)vm_->process().ended_within(50ms);
    }
  }
  Place place(const std::string& name) {
    Place made{.directory = directory_.path() / name, .cgroup = fmt::format("yado-test/{}-{}", directory_.path().filename().native(), name)};
    fs::create_directories(made.directory);
    return made;
  }
  Result<GuestRun> run(const Vm& vm, const std::vector<std::string>& command) {
    const auto wait = [&](nanoseconds time) -> Status {
      YADO_ASSIGN(const bool ended, vm.process().ended_within(time), "wait");
      if (ended) return fail(Errc::application, "the VM has ended");
      return {};
    };
    return run_in_guest([&] { return vm.agent(hang); }, wait, command, hang);
  }

  image::TemporaryDirectory directory_;
  VmSpec spec_;
  std::optional<Vm> vm_;
};

TEST_F(AgentVmProcessTest, ItsDisksRestAtTheCutItsClockIsSetAndItsHangingHoldsNobodyUp) {
  const auto run_here = run(*vm_, {"/bin/sh", "-c", "echo out; echo err >&2; exit 7"});
  ASSERT_OK(run_here);
  EXPECT_EQ(run_here->status.code, 7);
  EXPECT_EQ(run_here->output, "out\nerr\n");
  EXPECT_FALSE(run(*vm_, {"/no/such/program"}));

  for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(directory_.path() / "image" / part);
  const auto at = [&](const char* part) { return directory_.path() / "image" / part; };
  const auto save = [&] {
    PagesMemory memory(at("memory"));
    return vm_->save(at("device-state"), at("disk"), memory);
  };
  const auto saved = save();
  ASSERT_OK(saved);
  EXPECT_TRUE(saved->disks_frozen);
  const auto written = run(*vm_, {"/bin/sh", "-c", "echo thawed > /var/written && sync && cat /var/written"});
  ASSERT_OK(written);
  EXPECT_EQ(written->output, "thawed\n") << "its disks are not at rest any more";
  vm_.reset();

  const Instant cut = os::now();
  PagesMemory memory(at("memory"));
  auto restored = Vm::restore(spec_, place("b"), qemu(), {at("device-state"), at("disk"), saved->properties}, memory);
  ASSERT_OK(restored);
  {
    auto agent = restored->agent(hang);
    ASSERT_OK(agent);
    const auto thawed = agent->thaw_disks(hang);
    ASSERT_OK(thawed);
    EXPECT_GT(*thawed, 0) << "the image is of the moment at which they were at rest";
    const auto late = agent->time(hang);
    ASSERT_OK(late);
    const auto before = agent->set_time(os::wall_ms() * 1'000'000, hang);
    ASSERT_OK(before);
    const auto now = agent->time(hang);
    ASSERT_OK(now);
    EXPECT_GE(*now - *late, (os::now() - cut) / 2 / 1ns) << "what it stood still was missing";
    EXPECT_LT(std::abs(*now / 1'000'000 - os::wall_ms()), hang / 1ms);
  }

  // An agent that hangs holds nobody up.
  const auto stopped = run(*restored, {"/bin/sh", "-c", "(sleep 1; kill -STOP $(cat /run/agent.pid)) >/dev/null 2>&1 &"});
  ASSERT_OK(stopped);
  // QEMU sees its port open still; the agent says nothing.
  for (bool answers = true; answers;) answers = restored->agent(500ms).has_value();
  EXPECT_EQ(restored->agent(100ms).error().code, Errc::unavailable);
  fs::rename(directory_.path() / "image", directory_.path() / "first");
  for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(at(part));
  PagesMemory next(at("memory"));
  const auto without = restored->save(at("device-state"), at("disk"), next);
  ASSERT_OK(without);
  EXPECT_FALSE(without->disks_frozen);
}

}  // namespace
}  // namespace yado::vm
