// yado supervisor: started by the agent, one per instance; never by a person.

#include "agent/supervisor/spawn.hpp"

#include "cli/command.hpp"
#include "cli/role.hpp"

namespace yado::cli {

void add_supervisor(CLI::App& app, Outcome& outcome) {
  auto path = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("supervisor", "Internal: the parent of one instance, started by the agent");
  command->group("");  // not in the list of commands
  command->add_option("configuration", *path)->required();
  on_chosen(*command, outcome, [path] {
    start_log("supervisor", "info");
    return supervisor::run_spawned(*path);
  });
}

}  // namespace yado::cli
