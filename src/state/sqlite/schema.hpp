#pragma once
// The schema as a list of steps; PRAGMA user_version says how many of them a file has seen. Steps are only ever added.

#include <span>

#include "state/sqlite/database.hpp"

namespace yado::state {

/// SQL of every step, the oldest first.
std::span<const char* const> schema_steps();

/// Takes the steps that are missing, each in one transaction with its number. `unsupported` when the file has seen more
/// than `steps` knows or belongs to another program; then it is left as it is.
Status migrate(const Database& database, std::span<const char* const> steps);

}  // namespace yado::state
