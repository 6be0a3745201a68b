#pragma once
// Which driver a workload's kind wants.

#include <memory>

#include "agent/supervisor/protocol.hpp"
#include "workload/instance.hpp"

namespace yado::supervisor {

/// For a supervisor that lives in the instance's network namespace.
std::unique_ptr<workload::Driver> driver_of(const Config& config);

}  // namespace yado::supervisor
