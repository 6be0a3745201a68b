#pragma once
// The command line: one file per command. A command is a client of the HTTP API (docs/api.md), or a role.

namespace yado::cli {

/// Exit statuses (docs/cli.md).
enum Exit : int {
  ok = 0,
  failed = 1,       ///< asked, and the answer was an error
  usage = 2,        ///< wrong arguments or a spec with errors: nothing was asked
  no_control = 3,   ///< nobody answers
  not_found = 4,    ///< no workload, host or lab of that name
};

/// Parses, runs and returns the exit status.
int run(int argc, char** argv);

}  // namespace yado::cli
