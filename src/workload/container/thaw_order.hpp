#pragma once
// Letting a frozen family run again, children first.
//
// A parent that watches its children by heart-beats (gunicorn's master, php-fpm, supervisors of all kinds) and wakes
// before them sees heart-beats as old as the freeze and kills healthy children. So processes without children run
// first; their parents are held in a second freezer group until every one of the others has run and sleeps again.
//
// That alone does not save gunicorn's workers (20.1, measured: killed after a freeze of 40 s): Linux restarts their
// select() with the time that was left when the freeze began, so they run, but go straight back to sleep and beat
// only seconds later. So they are nudged when they sleep: as many connections as there are children, one after the
// other and all held open meanwhile, so that each busies one more worker; a worker that gets one beats.
// What this does not reach: workers that wait with a relative time-out for something else than the service's port.
// Event loops (epoll) need no nudge: the freeze interrupts their wait, and their timers are absolute.

#include <functional>

#include "base/error.hpp"
#include "os/cgroup.hpp"

namespace yado::container {

/// After a freeze: puts the parents into a freezer group of their own below `group`. Done then and not at the thaw,
/// because moving a process between groups costs the kernel some 10 ms (it waits for an RCU grace period), and a thaw
/// is what somebody waits for.
Status set_parents_apart(const os::Cgroup& group);

/// `group` is frozen. `running` is called when the children run: who waits for answers need not wait for the rest.
/// `nudge` is called once for every child process, between the children's waking and their parents'. `limit` bounds
/// the whole: how long the parents wait for children that do not settle.
struct ThawSteps {
  nanoseconds limit;
  std::function<void()> running;
  std::function<void()> nudge;
};
Status thaw_children_first(const os::Cgroup& group, const ThawSteps& steps);

/// The same for processes that stand still by SIGSTOP (CRIU's --leave-stopped).
Status continue_children_first(const os::Cgroup& group, nanoseconds limit);

}  // namespace yado::container
