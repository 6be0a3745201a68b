#pragma once
// A running guest's disks at one instant: the layers written so far are sealed under new, empty ones, in constant time,
// and copied afterwards while the guest goes on.
//
// After any interruption the files in the directory, in the order of their numbers, are still the disk: sealed layers are
// merged downwards into an older one, and a layer whose content is in that already only repeats it. That is why
// merged layers are removed oldest first, and the one that is written is never merged.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/error.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/qmp.hpp"

namespace yado::vm {

/// Made while the guest runs, so that nothing is when it stands still. Until they are in use QEMU does not have them open: if they never are, tidy_disks removes them.
struct NewLayers {
  std::vector<std::filesystem::path> below;  ///< of each disk the one that is written
  std::vector<std::filesystem::path> layers;
};
/// One for the disk over each of `bases`. Errors: those of make_overlay.
Result<NewLayers> make_new_layers(const Qemu& qemu, const std::vector<std::filesystem::path>& bases, const std::filesystem::path& directory);

/// The new layer on every disk, or on none. Of one instant, if the guest stands still. Errors: QEMU's words.
Status seal_disks(Qmp& qmp, const NewLayers& next, nanoseconds limit);

/// How many of the oldest layers of each disk lie in the directories `ahead`, the oldest first: what was copied before. `conflict`: what is
/// ahead was merged with something newer since.
Result<std::vector<std::size_t>> layers_ahead(const std::filesystem::path& directory, std::size_t disks, const std::vector<std::filesystem::path>& ahead);

/// Copies the sealed layers of every disk, but for so many of the oldest (none: all of them); what is shared already is shared with this image, too. Returns how many
/// bytes they are. Error `no_space`.
Result<std::uint64_t> copy_sealed(const std::filesystem::path& directory, std::size_t disks, const std::filesystem::path& to,
                                  const std::vector<std::size_t>& without = {});

/// What the layers that are written take on the disk.
Result<std::uint64_t> unsealed_bytes(const NewLayers& next);

/// Tidies, and merges what is sealed and not shared (disk.hpp), so that each disk has at most two such layers, or three: what an image has that was kept
/// (disk_mark.hpp) is not mixed with what was written since. `timed_out` when a merge makes no progress for `limit`. After an error the disk is as good as before, in
/// more layers.
Status merge_sealed(Qmp& qmp, const std::filesystem::path& directory, std::size_t disks, nanoseconds limit);

/// Waits for merges that are going on and removes the layers that QEMU does not have open: they were merged, or never
/// used. What a saver that was killed has left.
Status tidy_disks(Qmp& qmp, const std::filesystem::path& directory, std::size_t disks, nanoseconds limit);

}  // namespace yado::vm
