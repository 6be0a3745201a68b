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

enum class PartType { criu, pages, device_state, disk };
std::string_view name_of(PartType type);

struct File {
  std::string path;  ///< relative to the part's directory; no "..", no leading '/'
  std::uint64_t bytes = 0;
  std::string xxh128;  ///< 32 hex digits, XXH3 128 of the content
  bool operator==(const File&) const = default;
};

struct Part {
  PartType type = PartType::criu;
  std::string name;  ///< its directory inside the image
  std::vector<File> files;
  bool operator==(const Part&) const = default;
};

struct Manifest {
  ImageId id;
  WorkloadId workload;
  std::string spec_hash;  ///< spec + root file system when taken
  std::int64_t created_wall_ms = 0;
  std::optional<ImageId> base;  ///< of a delta
  std::vector<Part> parts;
  std::map<std::string, std::string> properties;  ///< what the driver needs to restore (for containers: pipe inodes …)

  std::uint64_t bytes() const;
  bool operator==(const Manifest&) const = default;
};

std::string to_json(const Manifest& manifest);
/// Errors say which field is wrong. Refuses unknown versions, unsafe paths, duplicate files.
Result<Manifest> manifest_from_json(std::string_view text);

}  // namespace yado::image
