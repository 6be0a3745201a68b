#pragma once
// The supervisor process: parent, reaper, log keeper and lease keeper of one instance. One thread, one poll(2).
//
// It outlives the agent and is found again by its socket. Killed, it takes the instance with it; ended by `stop`,
// SIGTERM or the end of an instance that nobody asks for any more, it leaves only the log and the image drafts of others.

#include "agent/supervisor/protocol.hpp"
#include "base/error.hpp"
#include "os/fd.hpp"
#include "workload/instance.hpp"

namespace yado::supervisor {

/// Runs until the end of the supervisor and returns the process's exit status. `network`: the instance's network
/// namespace; none: it shares this process's. `ready`: one packet of text is written when the socket answers ("ok")
/// or nothing will come of it (the error); then it is closed. `expecting`: a driver that made something ready for this instance, or none.
/// Only in a process with one thread and nothing else to do: it changes signal masks, and enters a mount namespace of
/// its own and the network namespace.
int run(const Config& config, os::Fd network, os::Fd ready, std::unique_ptr<workload::Driver> expecting = nullptr);

}  // namespace yado::supervisor
