// A guest whose memory is held with parity goes on on another main host: real QEMU, pagers and memory servers.
#include "workload/vm/moving_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;

class ParityMovingVmProcessTest : public MovingVmTest {
 protected:
  void SetUp() override {
    MovingVmTest::SetUp();
    if (!IsSkipped()) add_host("h4");
  }
  Place parity_place(const std::string& name, const std::vector<std::string>& over) {
    Place made = place(name, memory_bytes / 4, over);
    made.paging->config.session = "a";
    made.paging->config.parity = true;
    return made;
  }
  Place parity_heir(const std::string& name, const Handover& handover) {
    Place made = place_of_heir(name, handover, memory_bytes / 4);
    made.paging->config.parity = true;
    return made;
  }
  void lose(const std::string& host) { hosts_.erase(host); }
  void replace_by(const std::string& host, const std::vector<std::string>& over) {
    add_host(host);
    ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes / 4, parity_place("names", over).paging->config.servers));
    ASSERT_NO_FATAL_FAILURE(wait_until_redundant());
  }
  void goes_on_where_it_was() {
    ASSERT_OK(vm_->own_memory(++epoch_));
    ASSERT_OK(vm_->resume());
    expect_flawless();
    write_a_while('w', 3);
    expect_flawless();
  }
};

TEST_F(ParityMovingVmProcessTest, AnotherMainHostGoesOnAndAnyHostMayDie) {
  boot(parity_place("a", {"h2", "h3", "h4"}));
  write_a_while('w', 5);
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "elsewhere"));
  auto moved = go_on(handover, parity_heir("b", handover));
  ASSERT_OK(moved);
  Vm old = std::move(*vm_);
  vm_.emplace(std::move(*moved));
  expect_flawless();
  (void)old.resume();
  (void)old.console().send("v");  // or it has ended already
  const auto gone = old.process().ended_within(hang);
  ASSERT_OK(gone);
  EXPECT_TRUE(*gone) << "it is fenced";
  write_a_while('w', 3);
  ASSERT_NO_FATAL_FAILURE(wait_until_redundant());
  lose("h3");
  expect_flawless();

  // What h3 had is only in the parity, of which the next host would know nothing.
  const auto refused = try_to_leave(handover, "elsewhere");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("only in the parity"), std::string::npos) << refused.error().text();
  expect_flawless();
  ASSERT_NO_FATAL_FAILURE(replace_by("h5", {"h2", "h4", "h5"}));
  write_a_while('w', 3);
  ASSERT_NO_FATAL_FAILURE(leave(handover, "elsewhere"));
  moved = go_on(handover, parity_heir("c", handover));
  ASSERT_OK(moved);
  vm_.emplace(std::move(*moved));
  ASSERT_NO_FATAL_FAILURE(wait_until_redundant());
  lose("h4");
  expect_flawless();
}

TEST_F(ParityMovingVmProcessTest, UntilTheNextOnesGuestRunsTheHostBeforeCanGoOnWithItsStripes) {
  enum Moment { pager_dies, still_there, host_dies_before, host_dies_after, moments };
  boot(parity_place("a", {"h2", "h3", "h4"}));
  for (int moment = 0; moment < moments; ++moment) {
    SCOPED_TRACE(moment);
    write_a_while('w', 3);
    Handover handover;
    ASSERT_NO_FATAL_FAILURE(leave(handover, "elsewhere"));
    const Place next = parity_heir(fmt::format("b{}", moment), handover);
    if (moment == host_dies_before) lose("h3");
    auto heir = go_on(handover, next, Begin::paused);
    ASSERT_EQ(heir.has_value(), moment != host_dies_before);
    if (moment == pager_dies) heir = fail(Errc::canceled, "it is over");
    if (moment == host_dies_after) {
      lose("h4");
      EXPECT_FALSE(heir->own_memory(next.paging->config.epoch)) << "with a part of the memory only";
    }
    ASSERT_NO_FATAL_FAILURE(goes_on_where_it_was());
    EXPECT_FALSE(moment == still_there && heir->own_memory(next.paging->config.epoch)) << "it must never run";
    if (moment != host_dies_before) continue;
    ASSERT_NO_FATAL_FAILURE(replace_by("h3", {"h2", "h3", "h4"}));
  }
}

TEST_F(ParityMovingVmProcessTest, WhatIsStillInAnImageGoesToTheServers) {
  boot(parity_place("a", {"h2", "h3", "h4"}));
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  vm_.reset();
  Place other = parity_place("b", {"h2", "h3", "h4"});
  other.paging->config.image = image.chain;
  ASSERT_NO_FATAL_FAILURE(restore(image, other));
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "elsewhere"));
  auto moved = go_on(handover, parity_heir("c", handover));
  ASSERT_OK(moved);
  vm_.emplace(std::move(*moved));
  fs::remove_all(image.directory);
  for (const MemoryShare& share : image.shares)
    if (!share.host.empty()) fs::remove_all(share_of(image.name, share.host));
  expect_flawless();
}

/// A memory host, or who moves it, dies in the middle: the guest goes on where it was.
TEST_F(ParityMovingVmProcessTest, WhoDiesInTheMiddleOfItEndsTheMoveOnly) {
  boot(parity_place("a", {"h2", "h3", "h4"}));
  for (const int moment : {1, 3}) {
    SCOPED_TRACE(moment);
    write_a_while('w', 2);
    const fs::path directory = directory_.path() / fmt::format("handover-{}", moment);
    for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(directory / part);
    std::optional<LeavingMemory> memory(LeavingMemory::Options{.control = vm_->pager(), .part = directory / "memory", .to = "elsewhere", .progress = {}});
    Breaking breaking(*memory, moment, [&] { lose("h2"); });
    const auto saved = vm_->save(directory / "device-state", directory / "disk", breaking, After::paused);
    memory.reset();
    if (saved) {
      ASSERT_OK(vm_->resume());
    }
    expect_flawless();
    ASSERT_NO_FATAL_FAILURE(replace_by("h2", {"h2", "h3", "h4"}));
  }
}

}  // namespace
}  // namespace yado::vm
