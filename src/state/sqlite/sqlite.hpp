#pragma once
// The store in one SQLite file: WAL, synchronous=FULL, locked by the one control that uses it.

#include <filesystem>
#include <memory>

#include "state/store.hpp"

namespace yado::state {

/// Opens or makes the database (mode 0600: specs hold secrets); brings an older schema up to date. Errors, besides
/// those of Store: `conflict` when another process has it, `unsupported` when a newer yado wrote it, `corrupt` when the
/// whole file does not check out. Nothing is changed by a call that fails.
Result<std::unique_ptr<Store>> open_sqlite(const std::filesystem::path& file);

}  // namespace yado::state
