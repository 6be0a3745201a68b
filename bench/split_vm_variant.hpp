#pragma once
// A way to checkpoint and restore the writing guest: what split-vm compares. Each stands in a file of its own and is named in the list
// of split_vm.cpp.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "split_vm_guest.hpp"
#include "split_vm_rig.hpp"
#include "pager/service.hpp"

namespace yado::bench {

/// What the guest does meanwhile.
struct Load {
  bool live = false;           ///< false: it is stopped for the checkpoint, and goes on afterwards
  unsigned share_percent = 0;  ///< of its memory that it rewrites at full speed before, during and after a live checkpoint
  /// "stopped", "live 10 %".
  std::string name() const { return live ? fmt::format("live {} %", share_percent) : "stopped"; }
};

struct Case {
  Load load;
  std::uint32_t hosts = 0;           ///< the first ones of the rig, over which the guest's memory is split; 0: it is not
  std::uint64_t prefetch_bytes = 0;  ///< per fault of a split VM; 0: the pager's default
  /// "stopped", "live 10 %, 2 hosts", "live 10 %, 2 hosts, prefetch 4 KiB".
  std::string name() const {
    return load.name() + (hosts == 0 ? "" : fmt::format(", {} hosts", hosts)) + (prefetch_bytes == 0 ? "" : fmt::format(", prefetch {} KiB", prefetch_bytes >> 10));
  }
  std::uint32_t prefetch_pages() const { return prefetch_bytes == 0 ? pager::ServiceConfig().prefetch_pages : static_cast<std::uint32_t>(prefetch_bytes / 4096); }
};

struct Outcome {
  double checkpoint_s = 0;      ///< asked for -> the image is complete, and on the disks (fsync)
  Standstill standstill;        ///< of the guest, over the whole checkpoint
  std::uint64_t bytes_image = 0;  ///< of the files
  Traffic checkpoint;           ///< what the disks and links carried for it
  double restore_run_s = 0;     ///< asked for, caches cold -> the guest's first answer
  double restore_all_s = 0;     ///< asked for -> all of its memory is in
  double restore_gap_ms = 0;    ///< the longest gap of the guest's own clock in between; 0 when it ran only afterwards
  std::string wrong;            ///< what is wrong with the image that QEMU itself made; empty: nothing. Then there are no figures of a restore
};

struct VariantOptions {
  std::filesystem::path guest;    ///< of tools/make-guest
  std::uint64_t memory_bytes = 0;
  vm::Qemu qemu;                  ///< the system's
  std::filesystem::path new_qemu; ///< of tools/install-qemu; may be missing
};

class Variant {
 public:
  virtual ~Variant() = default;
  virtual std::string name() const = 0;
  /// Whether the guest's memory lies on several hosts.
  virtual bool splits() const { return false; }
  /// Whether it is a case of its own for every size of a prefetch.
  virtual bool prefetches() const { return false; }
  /// Why it cannot be measured here; empty: it can.
  virtual std::string why_not() const { return {}; }
  /// Boots a guest of its own, saves it, restores it, and has it verify every word. Leaves nothing on disks or in groups. A wrong
  /// image of ours is an error, which ends the benchmark; one of QEMU's is an outcome.
  virtual Result<Outcome> measure(Rig& rig, const Case& one) = 0;
};

/// QEMU's migration of an ordinary VM to a file, as everybody has it: through the page cache, then fsync.
std::unique_ptr<Variant> conventional_ordinary(const VariantOptions& options);
/// The same by QEMU 9.1's and later mapped-ram: every page at its own place, several threads, past the page cache.
std::unique_ptr<Variant> mapped_ram(const VariantOptions& options);
/// The first of these of a split VM: every page comes to the main host, by as many at once as the case says.
std::unique_ptr<Variant> conventional_split(const VariantOptions& options);
/// Ours: every host saves what it holds, all at once. `incremental`: what was written since an image before.
std::unique_ptr<Variant> parallel_split(const VariantOptions& options, bool incremental);

}  // namespace yado::bench
