#include "agent/supervisor/drivers.hpp"

#include "workload/container/driver.hpp"
#include "workload/vm/driver.hpp"

namespace yado::supervisor {

std::unique_ptr<workload::Driver> driver_of(const Config& config) {
  if (config.spec.kind == Kind::vm)
    return vm::make_driver(config.spec.name.str(), config.spec.vm, {.directory = config.directory, .cgroup = config.cgroup}, config.spec.service.port,
                           {.program = {std::filesystem::read_symlink("/proc/self/exe"), "pager"},
                            .session = config.spec.name.str(),
                            .epoch = config.epoch.value(),
                            .identity = config.identity});
  const container::Place place{.directory = config.directory,
                               .root = config.root,
                               .cgroup = config.cgroup,
                               .host_name = config.spec.name.str(),
                               .port = config.spec.service.port,
                               .network_namespace = -1,  // this process lives in it
                               .id_base = config.id_base};
  return container::make_driver(config.spec.container, place, {config.criu, config.criu_cache, config.criu_limit});
}

}  // namespace yado::supervisor
