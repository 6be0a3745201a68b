#pragma once
// One control group: limits, accounts, the freezer, and the certainty that nothing of it is left.
//
// Two worlds, told apart at run time by what is mounted:
//   v2       one tree (/sys/fs/cgroup); controllers are switched on from the root down
//   v1/hybrid  one tree per controller; the group is a directory of the same name in each of them. Where a v2 tree is
//            mounted beside them without controllers (hybrid), its freezer is preferred: it confirms by an event, and
//            a frozen process still dies by SIGKILL there, which it does not under the v1 freezer.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/error.hpp"
#include "base/time.hpp"

namespace yado::os {

struct CgroupLimits {
  std::uint64_t memory_bytes = 0;  ///< 0: none
  double cpus = 0;                 ///< 0: none; 0.5 = half a core
  std::uint32_t pids = 0;          ///< 0: none
};

struct CgroupUse {
  nanoseconds cpu{0};
  std::uint64_t memory_bytes = 0;
  std::uint64_t memory_limit_kills = 0;  ///< processes killed by the memory limit so far
};

/// Move-only; destruction kills what is inside and removes the directories, unless released.
class Cgroup {
 public:
  Cgroup() = default;
  Cgroup(Cgroup&&) noexcept = default;
  Cgroup& operator=(Cgroup&& other) noexcept;
  ~Cgroup();

  /// `name` is relative to the root of every hierarchy ("yado/site.4"); parents are made, and removed with
  /// the last group in them. An empty group of
  /// that name is taken over; one with processes in it is `conflict`.
  static Result<Cgroup> create(const std::string& name);
  /// A group that exists, to look at, freeze or clear away. Error `not_found`.
  static Result<Cgroup> open(const std::string& name);

  const std::string& name() const { return name_; }
  bool valid() const { return !name_.empty(); }

  Status add(pid_t pid) const;
  Status limit(const CgroupLimits& limits) const;
  /// For a while, and again: in short turns, so that nothing inside stands still for long (at most 0.1 s). 0: no limit.
  Status limit_cpus(double cpus) const;
  Result<CgroupUse> use() const;
  /// Processes in it and in the groups below it.
  Result<std::vector<pid_t>> processes() const;
  /// Its own threads and those of the groups below.
  Result<std::vector<pid_t>> threads() const;

  /// Returns when the kernel has confirmed that every task stands still; `timed_out` leaves the group freezing.
  Status freeze(nanoseconds limit) const;
  Status thaw() const;
  Result<bool> frozen() const;
  /// Directory that CRIU's --freeze-cgroup understands.
  const std::filesystem::path& freezer_directory() const { return freezer_; }

  /// A group below this one in the freezer's tree only: for freezing a part of the processes longer than the rest.
  Result<Cgroup> freezer_child(const std::string& name) const;
  /// Moves a process into this group's place in the freezer's tree only.
  Status add_to_freezer(pid_t pid) const;

  /// Kills everything inside (thawing where that is needed to die) and waits until it is gone.
  Status kill_all() const;
  /// kill_all, then removes the directories. Removing what is not there is a success.
  Status remove();
  /// Gives up ownership: the group stays.
  void release();

 private:
  Cgroup(std::string name, bool own);
  std::vector<std::filesystem::path> directories() const;
  Status set(const std::filesystem::path& directory, const char* file, const std::string& value) const;
  Status set_cpus(std::int64_t quota_us, std::uint64_t period_us) const;

  std::string name_;
  bool owned_ = false;
  bool freezer_v2_ = false;
  bool freezer_only_ = false;
  bool unified_ = false;  ///< controllers are v2's
  std::filesystem::path freezer_, memory_, cpu_, cpuacct_, pids_;
};

}  // namespace yado::os
