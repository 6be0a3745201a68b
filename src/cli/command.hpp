#pragma once
// What every command's file shares.

#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "base/error.hpp"
#include "cli/cli.hpp"

namespace yado::cli {

/// Set by the command that runs; run() returns it.
struct Outcome {
  int status = Exit::ok;
};

/// Options of every command that talks to control.
struct Common {
  std::string control;  ///< as given; empty: find it (client.hpp)
  bool json = false;
};
void add_common(CLI::App& command, Common& common);
void add_json(CLI::App& command, bool& json);
/// The first argument of most commands.
void add_workload(CLI::App& command, std::string& name);

/// A program and its arguments as given: CLI11 keeps the "--" that separates them from our options.
std::vector<std::string> after_dashes(std::vector<std::string> given);

/// Runs `body` when the command was chosen.
void on_chosen(CLI::App& command, Outcome& outcome, std::function<int()> body);

/// One line on stderr, and the exit status for it.
int complain(const Error& error);

// One per file: <name>.cpp (stop and rm: end.cpp).
void add_run(CLI::App& app, Outcome& outcome);
void add_adopt(CLI::App& app, Outcome& outcome);
void add_ps(CLI::App& app, Outcome& outcome);
void add_logs(CLI::App& app, Outcome& outcome);
void add_exec(CLI::App& app, Outcome& outcome);
void add_stop(CLI::App& app, Outcome& outcome);
void add_rm(CLI::App& app, Outcome& outcome);
void add_move(CLI::App& app, Outcome& outcome);
void add_checkpoint(CLI::App& app, Outcome& outcome);
void add_restore(CLI::App& app, Outcome& outcome);
void add_images(CLI::App& app, Outcome& outcome);
void add_hosts(CLI::App& app, Outcome& outcome);
void add_events(CLI::App& app, Outcome& outcome);
void add_drill(CLI::App& app, Outcome& outcome);
void add_dev(CLI::App& app, Outcome& outcome);
void add_control(CLI::App& app, Outcome& outcome);
void add_agent(CLI::App& app, Outcome& outcome);
void add_gate(CLI::App& app, Outcome& outcome);
void add_supervisor(CLI::App& app, Outcome& outcome);
void add_pager(CLI::App& app, Outcome& outcome);
void add_top(CLI::App& app, Outcome& outcome);
void add_version(CLI::App& app, Outcome& outcome);

}  // namespace yado::cli
