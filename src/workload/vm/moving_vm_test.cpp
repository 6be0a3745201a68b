// Guests that another main host goes on with, while they write: real QEMU, real pagers, real memory servers.
#include <fstream>

#include "workload/vm/disk.hpp"
#include "workload/vm/moving_vm_testing.hpp"
#include "workload/vm/slow_way_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;

class MovingVmProcessTest : public MovingVmTest {
 protected:
  /// It writes several times as much as goes to h2.
  void boot_beside_a_slow_way() {
    Place where = place("a", memory_bytes, {"h2"});
    where.paging->config.servers.front().unix_path = directory_.path() / "slow.sock";
    slow_.emplace(where.paging->config.servers.front().unix_path, hosts_["h2"].path, slow_pages_a_second * 4096);
    boot(where);
    write_a_while('w', 5);
  }
  LeavingMemory::Options leaving(const std::string& name) const {
    for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(directory_.path() / name / part);
    return {.control = vm_->pager(), .part = directory_.path() / name / "memory", .to = "h2", .progress = {}};
  }
  /// As the kernel has it.
  std::string cpu_limit() const {
    const fs::path root = "/sys/fs/cgroup";
    for (const fs::path& file : {root / "cpu" / vm_->cgroup().name() / "cpu.cfs_quota_us", root / vm_->cgroup().name() / "cpu.max"})
      if (const auto text = os::read_text(file)) return *text;
    ADD_FAILURE() << "no CPU controller here";
    return {};
  }
  static constexpr double slow_pages_a_second = 8192;
  std::optional<SlowWay> slow_;
};

TEST_F(MovingVmProcessTest, AnotherMainHostGoesOnWithIt) {
  for (const unsigned copies : {1u, 2u}) {
    SCOPED_TRACE(copies);
    add_host("h4");
    boot(place("a", memory_bytes / 4, {"h2", "h3", "h4"}, copies));
    std::string before = "a";
    for (const std::string next : {"b", "c"}) {
      SCOPED_TRACE(next);
      write_a_while('w', 5);
      Handover handover;
      ASSERT_NO_FATAL_FAILURE(leave(handover, "h4"));
      const Place where = place_of_heir(fmt::format("{}{}", next, copies), handover, memory_bytes / 2);
      auto moved = go_on(handover, where);
      ASSERT_OK(moved);
      Vm old = std::move(*vm_);
      vm_.emplace(std::move(*moved));
      expect_flawless();
      // Whoever had it is fenced: it may stand still for ever, but never go on beside the new one.
      if (next == "c") {
        (void)old.resume();
        (void)old.console().send("v");  // or it has ended already
        const auto gone = old.process().ended_within(hang);
        ASSERT_OK(gone);
        EXPECT_TRUE(*gone);
      }
    }
    write_a_while('w', 5);
    expect_flawless();
    Image image{.name = fmt::format("a-img.{}", copies)};
    ASSERT_NO_FATAL_FAILURE(checkpoint(image));
    vm_.reset();
    Place again = place(fmt::format("again{}", copies), memory_bytes / 2, {"h3"});
    again.paging->config.image = image.chain;
    ASSERT_NO_FATAL_FAILURE(restore(image, again));
    expect_flawless();
    vm_.reset();
    fs::remove_all(directory_.path() / "a");
  }
}

/// Half of it is written back to its servers, the rest lands on the next host's own, which is emptied into its memory.
TEST_F(MovingVmProcessTest, TheNextImageMayBeADeltaOfOneFromBeforeTheMove) {
  const auto pages = [](const Image& image) {
    std::uint64_t sum = 0;
    for (const MemoryShare& share : image.shares) sum += share.pages;
    return sum;
  };
  for (const unsigned copies : {1u, 2u}) {
    SCOPED_TRACE(copies);
    add_host("h4");
    boot(place("a", memory_bytes / 4, {"h2", "h3", "h4"}, copies));
    std::vector<Image> images;
    for (const std::string next : {"b", "c", "d"}) {
      SCOPED_TRACE(next);
      const Image* base = images.empty() ? nullptr : &images.back();
      Image image{.name = fmt::format("a-img.{}{}", next, copies)};
      ASSERT_NO_FATAL_FAILURE(checkpoint(image, base));
      if (base != nullptr) {
        EXPECT_EQ(image.base_cut, base->cut);
        EXPECT_LT(pages(image), pages(images.front()));
      }
      images.push_back(std::move(image));
      write_a_while('w', 5);
      Handover handover;
      ASSERT_NO_FATAL_FAILURE(leave(handover, next == "c" ? "h2" : "h4"));
      auto moved = go_on(handover, place_of_heir(fmt::format("{}{}", next, copies), handover, memory_bytes / 2));
      ASSERT_OK(moved);
      vm_.emplace(std::move(*moved));
      if (next != "c") write_a_while('w', 5);
    }
    Image last{.name = fmt::format("a-img.{}", copies)};
    ASSERT_NO_FATAL_FAILURE(checkpoint(last, &images.back()));
    EXPECT_EQ(last.base_cut, images.back().cut);
    vm_.reset();
    Place again = place(fmt::format("again{}", copies), memory_bytes / 2, {"h3"});
    again.paging->config.image = last.chain;
    ASSERT_NO_FATAL_FAILURE(restore(last, again));
    expect_flawless();
    vm_.reset();
    fs::remove_all(directory_.path() / "a");
  }
}

/// Its next QEMU stands ready before the guest stands still, whether its disk has one layer by then or, after a checkpoint, two.
TEST_F(MovingVmProcessTest, AnotherMainHostExpectsIt) {
  disks_ = {directory_.path() / "base.raw"};
  std::ofstream(disks_.front()) << std::string(1_MiB, '\0');
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  for (const auto& [next, saved_before] : {std::pair<std::string, bool>{"b", false}, {"c", true}, {"d", false}}) {
    SCOPED_TRACE(next);
    Image image{.name = "a-img." + next};
    if (saved_before) {
      ASSERT_NO_FATAL_FAILURE(checkpoint(image));
    }
    auto expected = Vm::expect(spec(), place(next, memory_bytes / 2, {}), qemu());
    ASSERT_OK(expected);
    write_a_while('d', 5);
    Handover handover;
    ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
    EXPECT_EQ(layers_of(handover.directory / "disk", 0).size(), next == "b" ? 1u : 2u);
    ImageParts of_another = handover.parts();
    of_another.properties["machine"] = "pc-q35-1.0";
    EXPECT_EQ(expected->suits(of_another).error().code, Errc::conflict);
    const pager::ServiceConfig heritage = place_of_heir(next, handover, memory_bytes / 2).paging->config;
    ASSERT_OK(expected->go_on(handover.parts(), heritage));
    vm_.emplace(std::move(*expected));
    const auto values = verify(*vm_);
    ASSERT_OK(values);
    EXPECT_TRUE(flawless(*values));
    EXPECT_EQ(values->at("disk"), "same");
  }
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
}

TEST_F(MovingVmProcessTest, WhoIsExpectedInVainLeavesNothing) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  // Nobody came.
  { ASSERT_OK(Vm::expect(spec(), place("b", memory_bytes / 2, {}), qemu())); }
  EXPECT_FALSE(fs::exists(directory_.path() / "b" / "pager"));
  // It cannot inherit everything: nobody is fenced, and where it stood it goes on.
  const Place where = place("c", memory_bytes / 2, {});
  auto expected = Vm::expect(spec(), where, qemu());
  ASSERT_OK(expected);
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
  pager::ServiceConfig mistaken = place_of_heir("c", handover, memory_bytes / 2).paging->config;
  mistaken.servers.front().instance ^= 1;
  EXPECT_FALSE(expected->go_on(handover.parts(), mistaken));
  ASSERT_OK(vm_->resume());
  write_a_while('w', 2);
  expect_flawless();
}

TEST_F(MovingVmProcessTest, WhenNobodyGoesOnWithItItStays) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  write_a_while('w', 5);
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
  // A host that cannot reach one of the servers fences nobody.
  Place cut_off = place_of_heir("b", handover, memory_bytes / 4);
  cut_off.paging->config.servers.back().unix_path += ".nobody";
  EXPECT_FALSE(go_on(handover, cut_off));
  // Nor one that finds another session there.
  Place mistaken = place_of_heir("c", handover, memory_bytes / 4);
  mistaken.paging->config.servers.front().instance ^= 1;
  EXPECT_FALSE(go_on(handover, mistaken));
  ASSERT_OK(vm_->resume());
  expect_flawless();
  write_a_while('w', 5);
  expect_flawless();
  // And it can be moved later.
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h2"));
  auto moved = go_on(handover, place_of_heir("d", handover, memory_bytes / 4));
  ASSERT_OK(moved);
  vm_.emplace(std::move(*moved));
  expect_flawless();
}

/// With all of its memory on one host it is as mobile.
TEST_F(MovingVmProcessTest, AMemoryThatIsAllHereGoesOverToAnotherHostAltogether) {
  boot(place("a", memory_bytes, {}));
  write_a_while('w', 5);
  ASSERT_NO_FATAL_FAILURE(add_landing("h2"));
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h2"));
  auto moved = go_on(handover, place_of_heir("b", handover, memory_bytes));
  ASSERT_OK(moved);
  vm_.emplace(std::move(*moved));
  write_a_while('w', 2);
  ASSERT_OK(wait_until_drained(vm_->pager()));
  EXPECT_TRUE(hosts_["h2"].server->sessions().empty()) << "where it landed is the host it runs on";
  hosts_.erase("h2"), hosts_.erase("h3");
  expect_flawless();
  write_a_while('w', 5);
  expect_flawless();
}

TEST_F(MovingVmProcessTest, AGuestThatWritesFasterThanPagesGoIsSlowedDown) {
  ASSERT_NO_FATAL_FAILURE(boot_beside_a_slow_way());
  const std::string unlimited = cpu_limit();
  // A guest that a busy machine gives no time to writes nothing, and need not be slowed down.
  bool slowed_down = false;
  for (int attempt = 0; !slowed_down; ++attempt) {
    ASSERT_LT(attempt, 10) << "it was never slowed down";
    LeavingMemory::Options options = leaving(fmt::format("slow-{}", attempt));
    std::string slowest;
    options.progress = [&](std::uint64_t, std::uint64_t) { slowest = cpu_limit(); };
    LeavingMemory memory(options);
    ASSERT_OK(vm_->save(options.part.parent_path() / "device-state", options.part.parent_path() / "disk", memory, After::paused));
    EXPECT_EQ(cpu_limit(), unlimited) << "its devices are slow to be saved";
    slowed_down = memory.rounds().cpus() > 0;
    if (slowed_down) {
      EXPECT_LT(memory.rounds().left(), slow_pages_a_second / 4) << memory.text();
      EXPECT_NE(slowest, unlimited) << memory.text();
      EXPECT_NE(memory.text().find("slowed down"), std::string::npos) << memory.text();
    }
    ASSERT_OK(vm_->resume());
  }
  expect_flawless();
}

TEST_F(MovingVmProcessTest, AMoverThatIsKilledLeavesASlowGuestThatGoesOnFast) {
  ASSERT_NO_FATAL_FAILURE(boot_beside_a_slow_way());
  const std::string unlimited = cpu_limit();
  // A guest that a busy machine gives no time to writes nothing, and need not be slowed down.
  for (int attempt = 0, status = 0; !WIFSIGNALED(status); ++attempt) {
    ASSERT_LT(attempt, 10) << "it was never slowed down";
    LeavingMemory::Options options = leaving(fmt::format("killed-{}", attempt));
    options.progress = [&](std::uint64_t, std::uint64_t) {
      if (cpu_limit() != unlimited) ::raise(SIGKILL);
    };
    const pid_t mover = ::fork();
    ASSERT_GE(mover, 0);
    if (mover == 0) {
      LeavingMemory memory(options);
      const auto saved = vm_->save(options.part.parent_path() / "device-state", options.part.parent_path() / "disk", memory, After::paused);
      fmt::print(stderr, "it was not killed: {}; {}\n", memory.text(), saved ? "saved" : saved.error().text());
      ::_exit(0);
    }
    ASSERT_EQ(::waitpid(mover, &status, 0), mover);
    EXPECT_EQ(cpu_limit() != unlimited, WIFSIGNALED(status));
    ASSERT_OK(vm_->resume());
    EXPECT_EQ(cpu_limit(), unlimited);
  }
  expect_flawless();
}

TEST_F(MovingVmProcessTest, WhatIsStillInAnImageGoesToTheServers) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  vm_.reset();
  Place other = place("b", memory_bytes / 8, {"h2", "h3"});
  other.paging->config.session = "a";
  other.paging->config.image = image.chain;
  ASSERT_NO_FATAL_FAILURE(restore(image, other));
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h2"));
  auto moved = go_on(handover, place_of_heir("c", handover, memory_bytes / 4));
  ASSERT_OK(moved);
  vm_.emplace(std::move(*moved));
  fs::remove_all(image.directory);
  for (const MemoryShare& share : image.shares)
    if (!share.host.empty()) fs::remove_all(share_of(image.name, share.host));
  expect_flawless();
}

/// Who dies while it is being moved: the guest goes on where it was, or ends; never a wrong word.
TEST_F(MovingVmProcessTest, WhoDiesWhenDuringAMoveTheGuestIsRightOrGone) {
  for (int moment = 0; moment < Breaking::moments; ++moment) {
    Place where = place(fmt::format("m{}", moment), memory_bytes / 4, {"h2", "h3"}, 2);
    where.paging->config.session = "a";  // a later life of the same: what a killed pager left on the servers goes
    boot(where);
    for (const std::string victim : {"mover", "server", "pager"}) {  // what is left of it serves the next one
      SCOPED_TRACE(fmt::format("{} at moment {}", victim, moment));
      write_a_while('w', 2);
      const fs::path directory = directory_.path() / fmt::format("handover-{}-{}", moment, victim);
      for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(directory / part);
      std::optional<LeavingMemory> memory(LeavingMemory::Options{.control = vm_->pager(), .part = directory / "memory", .to = "h2", .progress = {}});
      Breaking breaking(*memory, moment, [&] {
        if (victim == "mover") memory.emplace(LeavingMemory::Options{.control = vm_->pager(), .part = directory / "memory", .to = "h2", .progress = {}});
        if (victim == "server") hosts_["h3"].server.reset();
        if (victim == "pager") kill_pager();
      });
      const auto saved = vm_->save(directory / "device-state", directory / "disk", breaking, After::paused);
      memory.reset();
      if (victim == "pager") {
        const auto gone = vm_->process().ended_within(hang);
        ASSERT_OK(gone);
        EXPECT_TRUE(*gone) << "a guest went on without its pager";
        continue;
      }
      if (saved) {
        ASSERT_OK(vm_->resume());
      }
      expect_flawless();
    }
    vm_.reset();
    hosts_.erase("h3");
    add_host("h3");
  }
}

}  // namespace
}  // namespace yado::vm
