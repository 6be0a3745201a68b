// A move whose next host fails: who goes on is decided by who owns the sessions, never by time. Real QEMU, real pagers, real memory servers.
#include <future>

#include "workload/vm/moving_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;

class MovingBackVmProcessTest : public MovingVmTest {
 protected:
  static Result<os::Pidfd> pager_in(const fs::path& directory) {
    YADO_ASSIGN(const std::string number, os::read_text(directory / "pager.pid"), "pager");
    return os::Pidfd::open(std::atoi(number.c_str()));
  }
  static void kill_pager_in(const fs::path& directory) {
    const auto pager = pager_in(directory);
    ASSERT_OK(pager);
    ASSERT_OK(pager->send(SIGKILL));
  }
  /// Control has decided that it is to go on where it stands.
  void goes_on_where_it_was() {
    ASSERT_OK(vm_->own_memory(++epoch_));
    ASSERT_OK(vm_->resume());
    expect_flawless();
    write_a_while('w', 5);
    expect_flawless();
  }
  void must_not_go_on(Errc why) {
    const Status owned = vm_->own_memory(++epoch_);
    ASSERT_FALSE(owned);
    EXPECT_EQ(owned.error().code, why) << owned.error().text();
  }
};

/// Whatever becomes of the next host until its guest runs: nothing that it was left has been changed.
TEST_F(MovingBackVmProcessTest, UntilTheNextOnesGuestRunsTheHostBeforeCanGoOn) {
  enum Moment { no_qemu, bad_devices, qemu_dies, pager_dies, still_there, moments };
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  for (int moment = 0; moment < moments; ++moment) {
    SCOPED_TRACE(moment);
    write_a_while('w', 3);
    Handover handover;
    ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
    const Place next = place_of_heir(fmt::format("b{}", moment), handover, memory_bytes / 4);
    if (moment == no_qemu) {
      Qemu none = qemu();
      none.system = "/bin/false";
      PagedMemory nothing({});
      EXPECT_FALSE(Vm::restore(spec(), next, none, handover.parts(), nothing));
    } else if (moment == bad_devices) {
      fs::resize_file(handover.directory / "device-state" / "device-state", 4096);
      EXPECT_FALSE(go_on(handover, next));
    } else {
      // Its memory is read and its devices are loaded: one step from running.
      auto heir = go_on(handover, next, Begin::paused);
      ASSERT_OK(heir);
      if (moment == pager_dies) kill_pager_in(next.directory);
      if (moment == qemu_dies) ::kill(heir->process().pid(), SIGKILL);
      if (moment == still_there) {
        ASSERT_NO_FATAL_FAILURE(goes_on_where_it_was());
        EXPECT_FALSE(heir->own_memory(next.paging->config.epoch)) << "it must never run";
      }
    }
    ASSERT_NO_FATAL_FAILURE(goes_on_where_it_was());
  }
  // And it can be moved later.
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
  auto moved = go_on(handover, place_of_heir("at-last", handover, memory_bytes / 4));
  ASSERT_OK(moved);
  vm_.emplace(std::move(*moved));
  expect_flawless();
}

/// From then on its pages may have been changed: it is recovered from its image, and the host before never goes on.
TEST_F(MovingBackVmProcessTest, OnceTheNextOneMayHaveRunTheHostBeforeCannotGoOn) {
  enum Moment { before_cont, after_cont, ended_by_itself, moments };
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  for (int moment = 0; moment < moments; ++moment) {
    SCOPED_TRACE(moment);
    Image image{.name = fmt::format("a-img.{}", moment)};
    ASSERT_NO_FATAL_FAILURE(checkpoint(image));
    write_a_while('w', 3);
    Handover handover;
    ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
    Place next = place_of_heir(fmt::format("to-{}", moment), handover, memory_bytes / 4);
    auto heir = go_on(handover, next, Begin::paused);
    ASSERT_OK(heir);
    ASSERT_OK(heir->own_memory(next.paging->config.epoch));
    if (moment != before_cont) {
      ASSERT_OK(heir->resume());
      ASSERT_OK(verify(*heir));
    }
    if (moment == ended_by_itself) {
      const auto pager = pager_in(next.directory);
      ASSERT_OK(pager);
      ::kill(heir->process().pid(), SIGKILL);
      ASSERT_OK(heir->process().ended_within(hang));
      ASSERT_OK(pager->ended_within(hang));
      heir = fail(Errc::canceled, "it is over");  // its pager has ended the sessions: there is nobody any more, and nothing
      must_not_go_on(Errc::unavailable);
    } else {
      kill_pager_in(next.directory);
      must_not_go_on(Errc::not_owner);
    }
    vm_.reset();
    heir = fail(Errc::canceled, "it is over");
    Place again = place(fmt::format("again-{}", moment), memory_bytes / 4, {"h2", "h3"});
    again.paging->config.session = "a";
    again.paging->config.image = image.chain;
    ASSERT_NO_FATAL_FAILURE(restore(image, again));
    expect_flawless();
  }
}

TEST_F(MovingBackVmProcessTest, OfBothAtTheSameTimeOneGoesOn) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}, 2));
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(round);
    write_a_while('w', 2);
    Handover handover;
    ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
    const Place next = place_of_heir(fmt::format("b{}", round), handover, memory_bytes / 4);
    auto heir = go_on(handover, next, Begin::paused);
    ASSERT_OK(heir);
    const std::uint64_t later = ++epoch_;
    auto back = std::async(std::launch::async, [&] { return vm_->own_memory(later); });
    const Status forth = heir->own_memory(next.paging->config.epoch), taken_back = back.get();
    ASSERT_FALSE(forth && taken_back) << "two guests with the same pages";
    if (!forth && !taken_back) return;  // a server each: it would be recovered from an image
    if (forth) vm_.emplace(std::move(*heir));
    ASSERT_OK(vm_->resume());
    expect_flawless();
  }
}

TEST_F(MovingBackVmProcessTest, WhatIsNotAsItWasLeftIsNotInherited) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  write_a_while('w', 2);
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h3"));
  Place next = place_of_heir("b", handover, memory_bytes / 4);
  ++next.paging->config.servers.front().puts;
  const auto heir = go_on(handover, next);
  ASSERT_FALSE(heir);
  EXPECT_EQ(heir.error().code, Errc::conflict) << heir.error().text();
  goes_on_where_it_was();
}

/// It needs nothing that it cannot have: whoever was the landing may be gone for good.
TEST_F(MovingBackVmProcessTest, AMemoryThatIsAllHereGoesOnWithoutTheNextHost) {
  boot(place("a", memory_bytes, {}));
  write_a_while('w', 2);
  ASSERT_NO_FATAL_FAILURE(add_landing("h2"));
  Handover handover;
  ASSERT_NO_FATAL_FAILURE(leave(handover, "h2"));
  {
    const auto heir = go_on(handover, place_of_heir("b", handover, memory_bytes), Begin::paused);
    ASSERT_OK(heir);
    hosts_.erase("h2");
  }
  goes_on_where_it_was();
}

}  // namespace
}  // namespace yado::vm
