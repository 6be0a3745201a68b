#pragma once
// Which layers of a running guest's disks an image has that was kept, or that it was restored from: the next one needs those above only.
//
//   disk-0.qcow2 ─── … ─┬─ disk-0.K.qcow2 ─── … ─── disk-0.N.qcow2
//   in the image `cut`  │  written since            written now

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"

namespace yado::vm {

struct DiskMark {
  std::string cut;                  ///< names the image's instant, once for all times
  std::vector<std::string> layers;  ///< by disk: name of the first layer's file that it does not have
  bool operator==(const DiskMark&) const = default;
};

/// The layers that are written now. Right after seal_disks, what an image of that instant does not have.
Result<DiskMark> mark_now(const std::filesystem::path& directory, std::size_t disks, std::string cut);

/// Beside the disks, at once or not at all.
Status write_mark(const std::filesystem::path& directory, const DiskMark& mark);
/// Nothing: there is none, or it cannot be read.
std::optional<DiskMark> read_mark(const std::filesystem::path& directory);
Status forget_mark(const std::filesystem::path& directory);

/// How many layers of each disk, of those in the directory, lie below the mark; nothing when the disks are not those that it was made of.
std::optional<std::vector<std::size_t>> below(const DiskMark& mark, const std::filesystem::path& directory, std::size_t disks);

}  // namespace yado::vm
