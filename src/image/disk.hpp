#pragma once
// What the store does to directories: looking, comparing, making durable. Internal to src/image.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "image/manifest.hpp"

namespace yado::image {

inline constexpr std::string_view draft_prefix = ".draft-";
inline constexpr std::string_view removed_prefix = ".removed-";
inline constexpr std::string_view indices_prefix = ".indices-";
inline constexpr std::string_view use_prefix = ".use-";

enum class Durable { no, yes };

/// The files of one part directory with lengths and checksums, sorted by path. Anything that is neither a regular file
/// nor a directory is `corrupt`, as is a name that no manifest may carry. The log of a part of pages is not read: its
/// index has the checksums, made when the pages were written. With `Durable::yes`, files and directories are on the
/// disk when it returns.
Result<std::vector<File>> measure_part(const std::filesystem::path& part, PartType type, Durable durable);

/// Called now and then with how many bytes more are compared; their sum is about Manifest::data_bytes().
using OnCompared = std::function<void(std::uint64_t bytes)>;

/// The whole directory of an image against its manifest: parts and files missing or too many, lengths, checksums; of a
/// log that its index proves, every live record. `corrupt` names the first difference.
Status compare(const std::filesystem::path& image, const Manifest& manifest, Durable durable,
               const OnCompared& on_compared = {});

/// The manifest of a directory; `not_found` when it has none.
Result<Manifest> read_manifest_file(const std::filesystem::path& image, const ImageId& id);
/// Writes the manifest and makes it and its directory durable.
Status write_manifest_file(const std::filesystem::path& image, const Manifest& manifest);

Status sync_directory(const std::filesystem::path& directory);

/// "<prefix><id>-<16 random hex digits>", beside the images.
std::filesystem::path aside(const std::filesystem::path& store, std::string_view prefix, const ImageId& id);
/// Moves `from` to a name that must not be taken; `already_exists` when it is.
Status rename_to_new(const std::filesystem::path& from, const std::filesystem::path& to);
/// Each gets the other's name, at once.
Status exchange(const std::filesystem::path& one, const std::filesystem::path& other);

}  // namespace yado::image
