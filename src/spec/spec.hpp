#pragma once
// A workload's spec file (TOML, docs/spec.md) turned into the model.

#include <string_view>

#include "base/error.hpp"
#include "model/workload.hpp"
#include "spec/values.hpp"

namespace yado::spec {

/// Never throws, whatever the bytes. An error (`invalid_argument`) holds everything found wrong, one line each, in the
/// order of the file:
///   site.toml:7:12: policy.standby: "warm" is not one of cold, image, frozen
/// `file_name` is only text for the errors. `environment` is what `${NAME}` in strings may stand for.
Result<WorkloadSpec> parse(std::string_view text, std::string_view file_name, const Environment& environment);

}  // namespace yado::spec
