#pragma once
// yado exec --console: this terminal at the serial console of a VM.

#include <string>

#include "base/time.hpp"
#include "cli/command.hpp"

namespace yado::cli {

struct ConsoleOptions {
  Common common;
  std::string workload;
  /// After the end of standard input: how long the console may say nothing before it is left.
  nanoseconds linger{1s};
};

/// The exit status. With a terminal it is in raw mode meanwhile, and Ctrl-] leaves; without one, standard input is typed to its end.
int attach_console(const ConsoleOptions& options);

}  // namespace yado::cli
