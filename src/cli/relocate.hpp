#pragma once
// What `move` and `restore` share: a workload is to run elsewhere, and its events are shown meanwhile.

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace yado::cli {

struct Common;
/// `host`: empty for the best one. `more`: what else is asked of control (docs/api.md). Returns the exit status.
int relocate(const Common& common, const std::string& workload, const std::string& host, nlohmann::json more);
/// The same by any POST to `path` that ends when `workload` answers somewhere.
int relocate_by(const Common& common, const std::string& workload, const std::string& path, const nlohmann::json& body);

}  // namespace yado::cli
