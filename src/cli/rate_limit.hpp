#pragma once
// Limits of bandwidth as the options of commands name them.

#include <cstdint>
#include <string_view>

#include "base/error.hpp"

namespace yado::cli {

/// "50MiB/s" in bytes per second, at least 1 MiB/s as in a spec. The error, `invalid_argument`, begins with the option's name.
Result<std::uint64_t> parse_rate_limit(std::string_view option, std::string_view text);

}  // namespace yado::cli
