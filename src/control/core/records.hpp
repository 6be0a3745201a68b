#pragma once
// What control must not lose. One record per workload, written whole before anything that depends on it is done.

#include <vector>

#include "model/cluster.hpp"

namespace yado::control {

enum class OwnerPhase {
  absent,   ///< asleep: nobody runs
  raising,  ///< an epoch was granted; the instance is not known to answer
  up,
};

/// An image that may have to be gone back to.
struct EarlierImage {
  ImageId id;
  std::uint64_t revision = 0;
  std::vector<ImageId> bases;
  InstanceId of;
  bool operator==(const EarlierImage&) const = default;
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
  std::optional<ImageId> image;  ///< the current ready image, once taken
  std::uint64_t image_revision = 0;
  std::vector<ImageId> bases;  ///< what it is a delta of, the oldest first: kept as long as it is
  InstanceId image_of;         ///< the owner that it was taken of
  /// Of a VM with split memory, while `image` may be lost with one host: the last one that could not. Kept, with all that it needs, until `image` is acknowledged.
  std::optional<EarlierImage> acknowledged;
  std::optional<ImageId> raised_from;  ///< what `instance` was restored from. Only who was, or whom the image is of, can go on from it with a delta
  std::optional<InstanceId> standby;  ///< the frozen standby, once prepared
  HostId standby_host;
  std::uint64_t standby_revision = 0;
  /// Who was told to keep the memory of the running VM; none: not known.
  std::optional<std::vector<MemoryHost>> memory_hosts;
  bool operator==(const Record&) const = default;
};

}  // namespace yado::control
