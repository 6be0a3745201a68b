#pragma once
// The manifest of an image: what it is made of, and the checksums that are verified before anything is used.
// Format: docs/formats/image.md.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "model/ids.hpp"

namespace yado::image {

enum class PartType {
  criu,
  pages,
  device_state,
  disk,
  disk_delta  ///< what the disk of the image's base lacks: its files belong beside those, none has the name of another
};
std::string_view name_of(PartType type);

struct File {
  std::string path;  ///< relative to the part's directory; no "..", no leading '/'
  std::uint64_t bytes = 0;
  std::string xxh128;     ///< 32 hex digits, XXH3 128 of the content; empty when `proved_by` says what holds instead
  std::string proved_by;  ///< the file beside it whose records prove this one's: pages.index for pages.log
  std::optional<std::uint64_t> data_bytes;  ///< what of `bytes` was no hole when it was written; missing: all
  bool operator==(const File&) const = default;
};

struct Part {
  PartType type = PartType::criu;
  std::string name;  ///< its directory inside the image
  std::vector<File> files;
  bool operator==(const Part&) const = default;
};

/// One of the images that together are the image of a workload whose memory lay on several hosts.
struct Member {
  ImageId id;
  HostId host;         ///< in whose store it came into being
  std::string xxh128;  ///< of its manifest (checksum_of_manifest)
  bool operator==(const Member&) const = default;
};

struct Manifest {
  ImageId id;
  WorkloadId workload;
  std::string spec_hash;  ///< spec + root file system when taken
  std::int64_t created_wall_ms = 0;
  std::optional<ImageId> base;  ///< of a delta; of a member: the base of its main image
  std::vector<Part> parts;
  std::vector<Member> members;                    ///< of a main image
  std::optional<ImageId> member_of;               ///< of a member: its main image
  std::optional<std::string> stands_for;          ///< merged: checksum_of_manifest of what it took the place of
  std::map<std::string, std::string> properties;  ///< what the driver needs to restore (for containers: pipe inodes …)

  std::uint64_t bytes() const;
  std::uint64_t data_bytes() const;  ///< without holes
  bool operator==(const Manifest&) const = default;
};

std::string to_json(const Manifest& manifest);
/// Of the text to_json gives: by which a main image names its members.
std::string checksum_of_manifest(const Manifest& manifest);
/// Errors say which field is wrong. Refuses unknown versions, unsafe paths, duplicate files.
Result<Manifest> manifest_from_json(std::string_view text);

}  // namespace yado::image
