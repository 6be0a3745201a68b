#pragma once
// Containers as a kind of workload (workload/instance.hpp). The parts of their images are called "criu" and "disk".

#include <memory>

#include "model/workload.hpp"
#include "workload/container/container.hpp"
#include "workload/instance.hpp"

namespace yado::container {

std::unique_ptr<workload::Driver> make_driver(ContainerSpec spec, Place place, Criu criu);

}  // namespace yado::container
