#pragma once
// For tests: a guest that another main host goes on with.
#include "workload/vm/paged_vm_testing.hpp"

namespace yado::vm::testing {

class MovingVmTest : public PagedVmTest {
 protected:
  struct Handover {
    Saved saved;
    fs::path directory;
    std::string servers;
    ImageParts parts() const { return {directory / "device-state", directory / "disk", saved.properties}; }
  };
  /// It writes all the time; afterwards it stands still.
  void leave(Handover& handover, const std::string& to) {
    handover.directory = directory_.path() / fmt::format("handover-{}", ++handovers_);
    for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(handover.directory / part);
    LeavingMemory memory({.control = vm_->pager(), .part = handover.directory / "memory", .to = to, .progress = {}});
    auto saved = vm_->save(handover.directory / "device-state", handover.directory / "disk", memory, After::paused);
    ASSERT_OK(saved);
    handover.saved = std::move(*saved);
    handover.servers = memory.servers();
    EXPECT_EQ(vm_->run_state().value_or(""), "postmigrate");
  }
  Place place_of_heir(const std::string& name, const Handover& handover, std::uint64_t local) {
    Place where = place(name, local, {});
    where.paging->config.session = "a";
    auto servers = pager::servers_from_text(handover.servers);
    EXPECT_TRUE(servers);
    where.paging->config.servers = *servers;
    where.paging->config.working_set = handover.directory / "memory";
    return where;
  }
  Result<Vm> go_on(const Handover& handover, const Place& where, Begin begin = Begin::running) {
    PagedMemory nothing({});
    return Vm::restore(spec(), where, qemu(), handover.parts(), nothing, begin);
  }

  int handovers_ = 0;
};

}  // namespace yado::vm::testing
