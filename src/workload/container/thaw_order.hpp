#pragma once
// Letting a frozen family run again, children first.
//
// A parent that watches its children by heart-beats (gunicorn's master, php-fpm, supervisors of all kinds) and wakes
// before them sees heart-beats as old as the freeze and kills healthy children. So processes without children run
// first; their parents are held in a second freezer group until every one of the others has run and sleeps again.

#include "base/error.hpp"
#include "os/cgroup.hpp"

namespace yado::container {

/// `group` is frozen. `limit` bounds how long the parents wait for children that do not settle.
Status thaw_children_first(const os::Cgroup& group, nanoseconds limit);

}  // namespace yado::container
