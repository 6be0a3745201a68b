#pragma once
// What `move` and `restore` share: another host becomes the owner's, and the events are shown meanwhile.

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace yado::cli {

struct Common;
/// `host`: empty for the best one. `more`: what else is asked of control (docs/api.md). Returns the exit status.
int relocate(const Common& common, const std::string& workload, const std::string& host, nlohmann::json more);

}  // namespace yado::cli
