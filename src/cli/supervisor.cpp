// yado supervisor: started by the agent, one per instance; never by a person.

#include "agent/supervisor/spawn.hpp"

#include "cli/command.hpp"
#include "cli/role.hpp"

namespace yado::cli {

void add_supervisor(CLI::App& app, Outcome& outcome) {
  CLI::App* command = app.add_subcommand("supervisor", "Internal: the parent of one instance, started by the agent");
  command->group("");  // not in the list of commands
  on_chosen(*command, outcome, [] {
    start_log("supervisor", "info");
    return supervisor::run_spawned();
  });
}

}  // namespace yado::cli
