#pragma once
// Virtual machines as a kind of workload (workload/instance.hpp). The parts of their images are called "device-state",
// "disk" and "memory". For a supervisor that lives in the instance's network
// namespace: the guest gets the instance's address (net/guest_network.hpp).

#include <memory>

#include "model/workload.hpp"
#include "workload/instance.hpp"
#include "workload/vm/spec.hpp"

namespace yado::vm {

/// `place`: directory and cgroup; its network is the calling process's. `port`: where the guest's service listens.
std::unique_ptr<workload::Driver> make_driver(std::string name, const yado::VmSpec& spec, Place place, std::uint16_t port);

}  // namespace yado::vm
