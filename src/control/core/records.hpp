#pragma once
// What control must not lose. One record per workload, written whole before anything that depends on it is done.

#include <algorithm>
#include <optional>
#include <vector>

#include "model/cluster.hpp"

namespace yado::control {

enum class OwnerPhase {
  absent,   ///< asleep: nobody runs
  raising,  ///< an epoch was granted; the instance is not known to answer
  up,
};

struct ReadyImage {
  ImageId id;
  std::uint64_t revision = 0;  ///< of the spec that it was taken of
  std::vector<ImageId> bases;  ///< what it is a delta of, the oldest first: kept as long as it is
  InstanceId of;               ///< the owner, or builder, that it was taken of
  std::optional<WorkloadId> origin = {};  ///< whose it is, if this is a clone that has no image of its own yet
  bool is_or_needs(const ImageId& image) const { return id == image || std::ranges::find(bases, image) != bases.end(); }
  bool operator==(const ReadyImage&) const = default;
};

struct Record {
  WorkloadSpec spec;
  std::uint64_t revision = 0;  ///< of the spec: an image or standby of another revision is useless
  bool removed = false;        ///< kept for its epoch: a workload of the same name goes on counting
  bool stopped = false;        ///< a person stopped it
  Epoch epoch;
  std::uint64_t serial = 0;  ///< of the last instance or image name given out
  OwnerPhase phase = OwnerPhase::absent;
  HostId host;  ///< of the owner, when raising or up; of the sleeper, when absent after a sleep
  InstanceId instance;
  Endpoint endpoint;
  std::optional<ReadyImage> image;  ///< the newest one, once taken
  /// Of a VM with split memory, while `image` may be lost with one host: the last one that could not. Kept, with all that it needs, until `image` is acknowledged.
  std::optional<ReadyImage> acknowledged;
  std::optional<ImageId> raised_from;  ///< what `instance` was restored from, or was the image of who moved and is `instance` now. Only such ones, and whom the image is of, can go on from it with a delta
  std::optional<InstanceId> standby;  ///< the frozen standby, once prepared
  HostId standby_host;
  std::uint64_t standby_revision = 0;
  /// Who was told to keep the memory of the running VM; none: not known.
  std::optional<std::vector<MemoryHost>> memory_hosts;
  bool has_image(const ImageId& id) const { return image && image->id == id; }
  /// Of the spec as it is now: another one is useless.
  bool image_current() const { return image && image->revision == revision; }
  bool leans_on_origin() const { return image_current() && image->origin; }
  /// What the owner has written since is known: its next image may be a delta of this one.
  bool owner_counts_from_image() const { return image && (image->of == instance || raised_from == image->id); }
  bool operator==(const Record&) const = default;
};

}  // namespace yado::control
