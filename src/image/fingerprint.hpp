#pragma once
// "Is this image still what a cold start would give?" (docs/formats/image.md, "Hash of a spec").

#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "model/workload.hpp"

namespace yado::image {

/// Of a root file system: a directory by its entries' names, modes, owners, lengths and times; a tar by its length and
/// time. Does not read files: some microseconds per entry. Error `not_found` or `permission` names the path.
Result<std::string> fingerprint(const std::filesystem::path& root);

/// Pure: of what an image depends on in `spec`, and of `fingerprint`.
std::string spec_hash(const WorkloadSpec& spec, std::string_view root_fingerprint);

}  // namespace yado::image
