#pragma once
// A guest is slowed down while it is being left: QEMU gets less processor time (os::Cgroup::limit_cpus). At destruction it gets what it had.
// Should whoever holds it be killed, Vm::resume and Vm::stop do the same. One thread.

#include "base/error.hpp"
#include "base/log.hpp"
#include "os/cgroup.hpp"

namespace yado::vm {

/// As much as its spec says (`cpus`; 0: no limit). Where there is no CPU controller nothing was taken away.
inline void full_speed(const os::Cgroup& group, double cpus) {
  const Status given = cpus > 0 ? group.limit({.cpus = cpus}) : group.limit_cpus(0);
  if (!given && given.error().code != Errc::unsupported) log::warn("{} stays slow: {}", group.name(), given.error().text());
}

class Brake {
 public:
  Brake(const os::Cgroup& group, double cpus) : group_(group), cpus_(cpus) {}
  Brake(const Brake&) = delete;
  Brake& operator=(const Brake&) = delete;
  ~Brake() {
    if (applied_) full_speed(group_, cpus_);
  }
  /// `cpus`: of one processor, more than 0. Errors: unsupported (no CPU controller here).
  Status limit(double cpus) {
    applied_ = true;
    return group_.limit_cpus(cpus);
  }
  /// All that it has used so far.
  Result<nanoseconds> used() const {
    YADO_ASSIGN(const os::CgroupUse use, group_.use(), "processor time");
    return use.cpu;
  }

 private:
  const os::Cgroup& group_;
  const double cpus_;
  bool applied_ = false;
};

}  // namespace yado::vm
