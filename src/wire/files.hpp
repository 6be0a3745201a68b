#pragma once
// Small files of secrets and certificates: read whole, written whole or not at all.

#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace yado::wire {

/// `secret`: refused when others than the owner may read the file.
Result<std::string> read_file(const std::filesystem::path& path, bool secret);

/// Temporary file, fsync, rename: a reader sees the old contents or the new ones.
Status write_file(const std::filesystem::path& path, std::string_view contents, unsigned mode);

/// Makes `directory` (mode 0700) if it does not exist; its parent must.
Status make_private_directory(const std::filesystem::path& directory);

}  // namespace yado::wire
