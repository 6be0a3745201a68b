// yado pager: started by a supervisor, one per VM with split memory; by a person for a VM that libvirt starts (docs/libvirt.md).

#include "cli/command.hpp"
#include "cli/role.hpp"
#include "pager/hook_socket.hpp"
#include "pager/service.hpp"

namespace yado::cli {

void add_pager(CLI::App& app, Outcome& outcome) {
  CLI::App* command = app.add_subcommand("pager", "Pages the memory of one VM; started by its supervisor, or beside a libvirt that starts the VM");
  command->group("");  // not in the list of commands
  auto file = std::make_shared<std::string>();
  auto hook = std::make_shared<std::string>();
  command->add_option("configuration", *file)->required();
  command->add_option("--listen", *hook, "Wait at this socket for the VM's hook: its YADO_PAGES_PAGER")->type_name("PATH");
  on_chosen(*command, outcome, [file, hook] {
    start_log("pager", "info");
    return hook->empty() ? pager::run_service(*file) : pager::run_service_at(*hook, *file);
  });
}

}  // namespace yado::cli
