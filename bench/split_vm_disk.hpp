#pragma once
// A lab host's disk whose rate the kernel limits: a file system of its own on a loop device of its own.
//
//   <directory>/h1 ── ext4 ── /dev/loop1001 ── (limit) ── file without a name on the machine's disk, O_DIRECT
//
// What may pass the device is limited, whoever writes and however: O_DIRECT, fsync, write-back in the background. The device's own
// counters say how much it was. Nothing has a name but the device and its mount point, and the mount is in this process's mount
// namespace only: whatever this process dies of, all of it goes but the loop device's number, which the next one takes over.
//
// The limit: with cgroup v1 (blkio) on the device for the root group, to which everything belongs that has no blkio group of
// its own, the kernel's threads included; it ends with the device. With v2 (io.max) for the host's group.

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::bench {

class LimitedDisk {
 public:
  /// Mounted at `directory` (made, and removed at destruction), of up to `bytes`, on `backing`'s file system, which must know
  /// O_TMPFILE; `number` of the loop device. Not limited yet. Only in a mount namespace of one's own. Errors: `permission`,
  /// `conflict` when somebody else has that loop device, `no_space`.
  static Result<LimitedDisk> create(const std::filesystem::path& directory, const std::filesystem::path& backing, std::uint64_t bytes, int number);
  /// Only the device, without a file system or a directory.
  static Result<LimitedDisk> create_bare(const std::filesystem::path& backing, std::uint64_t bytes, int number);
  LimitedDisk(LimitedDisk&& other) noexcept;
  LimitedDisk& operator=(LimitedDisk&&) = delete;
  ~LimitedDisk();

  /// Where it is mounted.
  const std::filesystem::path& path() const { return directory_; }
  /// "/dev/loop1001".
  std::string device() const;
  /// Reads and writes alike. `cgroup`: the host's, which exists (v2).
  Status limit(std::uint64_t bytes_per_second, const std::string& cgroup) const;

  struct Moved {
    std::uint64_t written = 0, read = 0;  ///< bytes that passed the device
  };
  Result<Moved> moved() const;

 private:
  LimitedDisk() = default;
  std::filesystem::path directory_;
  int number_ = -1;       ///< of the loop device; -1: none
  os::Fd bare_;           ///< keeps a device that nobody has mounted
  bool mounted_ = false;
};

/// Takes a loop device that nobody uses off the machine, with the limit on it. None of that number, or one in use: nothing happens.
void remove_loop_device(int number);

/// Bytes per second that the disk below `directory` takes, unlimited: 512 MiB of incompressible data, O_DIRECT, then fsync.
Result<double> raw_write_rate(const std::filesystem::path& directory);

}  // namespace yado::bench
