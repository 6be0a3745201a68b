#pragma once
// The option --over: on which hosts the memory of a VM is to lie.

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"

namespace yado::cli {

/// "h1:1.5GiB,h4:512MiB,h5": of `main`, how much of it stays there, as before if nothing is said; of the others, the most that they keep,
/// or an even share of the rest. `main` alone: all of it. `spec`: with the split of now. Returns the split.
Result<nlohmann::json> split_over(const std::string& over, const nlohmann::json& spec, const std::string& main);

}  // namespace yado::cli
