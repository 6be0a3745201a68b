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
    std::vector<fs::path> ahead;  ///< of its disks, what the next host has already
    ImageParts parts() const { return {directory / "device-state", directory / "disk", saved.properties, ahead}; }
  };
  Result<Saved> try_to_leave(Handover& handover, const std::string& to, const DisksAhead& ahead = {}) {
    handover.directory = directory_.path() / fmt::format("handover-{}", ++handovers_);
    handover.ahead = ahead.directories;
    for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(handover.directory / part);
    LeavingMemory memory({.control = vm_->pager(), .part = handover.directory / "memory", .to = to, .progress = {}});
    YADO_ASSIGN(handover.saved, vm_->save(handover.directory / "device-state", handover.directory / "disk", memory, After::paused, ahead), "leave");
    handover.servers = memory.servers();
    return handover.saved;
  }
  /// It writes all the time; afterwards it stands still.
  void leave(Handover& handover, const std::string& to) {
    const auto left = try_to_leave(handover, to);
    ASSERT_OK(left);
    EXPECT_EQ(vm_->run_state().value_or(""), "postmigrate");
  }
  /// A memory that is all here may go to this host's server.
  void add_landing(const std::string& host) {
    const std::vector<pager::ServiceConfig::Server> landing{{.host = host, .unix_path = hosts_[host].socket(), .quota_bytes = memory_bytes}};
    ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes, landing));
  }
  Place place_of_heir(const std::string& name, const Handover& handover, std::uint64_t local) {
    Place where = place(name, local, {});
    where.paging->config.session = "a";
    auto servers = pager::servers_from_text(handover.servers);
    EXPECT_TRUE(servers);
    where.paging->config.servers = *servers;
    where.paging->config.left_in = handover.directory / "memory";
    return where;
  }
  Result<Vm> go_on(const Handover& handover, const Place& where, Begin begin = Begin::running) {
    PagedMemory nothing({});
    return Vm::restore(spec(), where, qemu(), handover.parts(), nothing, begin);
  }

  int handovers_ = 0;
};

}  // namespace yado::vm::testing
