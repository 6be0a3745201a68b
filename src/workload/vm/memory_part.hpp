#pragma once
// How a guest's memory gets into an image and out of one. The driver knows no more than this: what is behind it may
// be one file, or a log kept by several hosts.

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::vm {

class Brake;

class MemoryPart {
 public:
  virtual ~MemoryPart() = default;
  /// Called while the guest still runs: whatever can be done before the cut. May slow it down; it is let go afterwards.
  virtual Status before_pause(Brake&) { return {}; }
  /// Called while the guest stands still, and only what is done here lengthens its pause by memory. `memory` is the
  /// shared file, offset = RAM offset; only to be read.
  virtual Status save(const os::Fd& memory, std::uint64_t bytes) = 0;
  /// Called when the guest runs again, only after a successful save: what could wait.
  virtual Status after_pause() { return {}; }
  /// After after_pause(): names the cut that this is a delta of; empty: of none.
  virtual std::string delta_of() const { return {}; }
  /// In a restore: names the cut that it is as at, if what changes from then on is counted from that; else empty.
  virtual std::string restored_cut() const { return {}; }
  /// Fills a fresh file of that length, all holes, before QEMU maps it.
  virtual Status load(const os::Fd& memory, std::uint64_t bytes) = 0;
};

/// One sparse file with offset = RAM offset. Error `no_space`; after a failed save no file is left.
class FlatMemory final : public MemoryPart {
 public:
  explicit FlatMemory(std::filesystem::path file) : file_(std::move(file)) {}
  Status save(const os::Fd& memory, std::uint64_t bytes) override;
  Status load(const os::Fd& memory, std::uint64_t bytes) override;

 private:
  std::filesystem::path file_;
};

}  // namespace yado::vm
