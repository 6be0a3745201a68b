#pragma once
// Where split-vm is measured: a lab whose hosts have links and disks of one rate each, and counters of both.
//
// Made in two steps, so that nothing is left whatever ends a measurement: RigDisks belong to the process that outlives it
// (split_vm.cpp), the Rig to the one that measures.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "lab/lab.hpp"
#include "split_vm_disk.hpp"

namespace yado::bench {

struct RigOptions {
  std::uint32_t hosts = 2;
  std::uint64_t link_bits_per_second = 1'000'000'000;      ///< of every host, each way
  std::uint64_t disk_bytes_per_second = 0;                 ///< of every host, reading and writing
  std::uint64_t disk_bytes = 0;                            ///< room on it
  std::filesystem::path backing = "/var/tmp";              ///< the file system that the disks are on
  std::filesystem::path run_directory = "/run/yado";
};

inline constexpr const char* rig_name = "split-vm";  ///< of the lab, its control groups and its directories

using Say = std::function<void(const std::string&)>;

/// The disks of all hosts, not limited yet, mounted where everybody who is started from here sees them. The process must have one thread.
struct RigDisks {
  static Result<RigDisks> create(const RigOptions& options);
  double raw_bytes_per_second = 0;  ///< of the disk below, measured before anything else
  std::vector<LimitedDisk> disks;   ///< of h1, h2, …
};

/// Bytes since the rig began.
struct Traffic {
  std::uint64_t disk_written = 0, disk_read = 0;  ///< by all hosts
  std::uint64_t wire = 0;                         ///< sent by all hosts, with all headers
  Traffic operator-(const Traffic& before) const { return {disk_written - before.disk_written, disk_read - before.disk_read, wire - before.wire}; }
};

class Rig {
 public:
  /// All hosts are up and limited, and their disks were measured: `conflict` when one is not as slow as it should be, or
  /// when all limits together are not below half of the raw disk's rate.
  static Result<Rig> create(const RigOptions& options, const RigDisks& disks, const Say& say);

  const RigOptions& options() const { return options_; }
  lab::Lab& lab() { return lab_; }
  const std::vector<HostId>& hosts() const { return lab_.hosts(); }
  /// The host's limited disk, by the same path inside the host and outside.
  const std::filesystem::path& disk(const HostId& host) const;
  /// A control group below the host's, for what a measurement starts by itself (os::Cgroup).
  std::string cgroup(const HostId& host, const std::string& name) const { return lab_.cgroup(host) + "/" + name; }
  Result<Traffic> traffic() const;
  /// Of the slowest host, as measured.
  double disk_write_rate() const { return write_rate_; }
  double disk_read_rate() const { return read_rate_; }
  /// Payload bytes per second from the last host to the first, as measured. 0: one host has no link to measure.
  double link_rate() const { return link_rate_; }
  /// The most by which saving on that many hosts at once can beat saving everything on the first one: all pages through one disk, and
  /// all but the first host's through its link (docs/scale.md).
  double bound(std::uint32_t hosts) const;
  /// What was measured of this rig, in one line.
  std::string describe() const;

 private:
  Rig(RigOptions options, const RigDisks& disks, lab::Lab lab) : options_(std::move(options)), disks_(disks), lab_(std::move(lab)) {}
  Status limit_disks();
  Status measure_link();

  RigOptions options_;
  const RigDisks& disks_;
  lab::Lab lab_;
  double write_rate_ = 0, read_rate_ = 0, link_rate_ = 0;  ///< bytes per second
};

}  // namespace yado::bench
