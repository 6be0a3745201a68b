#pragma once
// What this machine swaps to while a program's memory is limited: compressed memory (zram) or a disk of the rig's rate. Both are made for the
// benchmark and switched on only for one measurement at a time.
//
// Swap is the machine's, not a process's: SwapAreas belong to the process that outlives the measurement (split_vm_supervise.hpp) and put
// everything back. If that one is killed as well, the next run does, by what it finds in <run directory>/split-vm-swap.
//
// Sources: Documentation/admin-guide/blockdev/zram.rst, swapon(2), Documentation/admin-guide/sysctl/vm.rst (page-cluster).

#include <optional>
#include <string>

#include "split_vm_disk.hpp"
#include "split_vm_supervise.hpp"

namespace yado::bench {

enum class SwapKind { zram, disk };

struct ZramUse {
  std::uint64_t stored = 0;  ///< bytes that were swapped out
  std::uint64_t taken = 0;   ///< bytes of memory for them
};

class SwapAreas final : public Held {
 public:
  struct Options {
    std::filesystem::path backing, run_directory;
    std::uint64_t bytes = 0;            ///< of each
    std::uint64_t disk_bytes_per_second = 0;
  };
  /// An area that this machine cannot have is left out: why_not says the reason.
  static Result<std::unique_ptr<SwapAreas>> create(const Options& options);
  ~SwapAreas() override;

  /// Empty: it can be switched on.
  std::string why_not(SwapKind kind) const;
  /// "zram with lzo-rle, …", for people.
  std::string describe() const;
  /// Only this one, empty. `page_cluster`: a fault brings 2 to the power of it pages; none: as the machine has it.
  Status on(SwapKind kind, std::optional<int> page_cluster);
  /// Nobody has anything in it any more, or it takes its time: what is in it comes back.
  Status off();
  Result<ZramUse> zram_use() const;
  const LimitedDisk& disk() const { return *disk_; }
  /// cgroup: of whoever is swapped out, and exists (v2 limits groups).
  Status limit_disk(const std::string& cgroup) const { return disk_->limit(options_.disk_bytes_per_second, cgroup); }

 private:
  explicit SwapAreas(Options options) : options_(std::move(options)) {}
  Status make_zram();
  Status write_note() const;

  Options options_;
  int zram_ = -1;               ///< its number; -1: none
  std::string algorithm_;
  int page_cluster_ = 0;        ///< as it was
  std::string why_no_zram_, why_no_disk_;
  std::optional<LimitedDisk> disk_;
};

}  // namespace yado::bench
