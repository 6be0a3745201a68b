#pragma once
// yado run, for commands that end in it.

#include <string>

#include "cli/command.hpp"

namespace yado::cli {

struct RunOptions {
  Common common;
  std::string file;
  bool dry_run = false;
  bool quiet = false;  ///< no events; with dry_run nothing at all but errors
};

/// The exit status.
int run_spec(const RunOptions& options);

}  // namespace yado::cli
