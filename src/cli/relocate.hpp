#pragma once
// What `move` and `restore` share: another host becomes the owner's, and the events are shown meanwhile.

#include <string>

namespace yado::cli {

struct Common;
/// `host`: empty for the best one. Returns the exit status.
int relocate(const Common& common, const std::string& workload, const std::string& host);

}  // namespace yado::cli
