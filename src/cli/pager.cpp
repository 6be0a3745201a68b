// yado pager: started by a supervisor, one per VM with split memory; never by a person.

#include "cli/command.hpp"
#include "cli/role.hpp"
#include "pager/service.hpp"

namespace yado::cli {

void add_pager(CLI::App& app, Outcome& outcome) {
  CLI::App* command = app.add_subcommand("pager", "Internal: pages the memory of one VM, started by its supervisor");
  command->group("");  // not in the list of commands
  auto file = std::make_shared<std::string>();
  command->add_option("configuration", *file)->required();
  on_chosen(*command, outcome, [file] {
    start_log("pager", "info");
    return pager::run_service(*file);
  });
}

}  // namespace yado::cli
