#pragma once
// Maps of user and group ids (user_namespaces(7)).

#include <cstdint>
#include <vector>

#include <sys/types.h>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::os {

struct IdRange {
  std::uint32_t inside = 0;
  std::uint32_t outside = 0;
  std::uint32_t count = 0;
};

/// Writes uid_map and gid_map of a process that has just entered a user namespace of its own.
Status write_id_maps(pid_t pid, const std::vector<IdRange>& ranges);
/// A user namespace that nobody lives in: the form in which mount_setattr(2) wants a map.
Result<Fd> make_id_map(const std::vector<IdRange>& ranges);

}  // namespace yado::os
