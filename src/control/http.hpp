#pragma once
// What a request asks for: "/v1/workloads/site/logs?lines=20" in parts.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"

namespace yado::control {

struct Target {
  std::vector<std::string> path;  ///< what follows /v1/
  std::map<std::string, std::string, std::less<>> query;

  /// True for "1" and "true".
  bool flag(std::string_view key) const;
  /// `otherwise` when it is not there; Error `invalid_argument` when it is no whole number.
  Result<std::uint64_t> number(std::string_view key, std::uint64_t otherwise) const;
};

/// `not_found` for anything that does not begin with /v1/.
Result<Target> parse_target(std::string_view target);

}  // namespace yado::control
