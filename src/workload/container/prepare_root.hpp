#pragma once
// A root file system given as an archive becomes a directory, once per archive.

#include <filesystem>

#include "base/error.hpp"

namespace yado::container {

/// The directory to use as Place::root. A directory is returned as it is. An archive is unpacked into
/// `<cache>/<hash of the file's inode, length and time>`, atomically: unpacked beside, then renamed, so that two agents or a crash leave no
/// half one. Errors: `not_found`, `corrupt`, `no_space`.
Result<std::filesystem::path> prepare_root(const std::filesystem::path& given, const std::filesystem::path& cache);

}  // namespace yado::container
