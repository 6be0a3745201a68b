#include "cli/cli.hpp"

#include <cstdio>

#include "cli/command.hpp"

namespace yado::cli {

int run(int argc, char** argv) {
  Outcome outcome;
  CLI::App app{"Keeps services running by moving them between hosts.", "yado"};
  app.require_subcommand(1);
  app.footer("Start with `yado dev`: a cluster of three hosts on this machine.");

  add_run(app, outcome);
  add_adopt(app, outcome);
  add_ps(app, outcome);
  add_logs(app, outcome);
  add_exec(app, outcome);
  add_stop(app, outcome);
  add_rm(app, outcome);
  add_move(app, outcome);
  add_checkpoint(app, outcome);
  add_restore(app, outcome);
  add_images(app, outcome);
  add_hosts(app, outcome);
  add_top(app, outcome);
  add_events(app, outcome);
  add_drill(app, outcome);
  add_dev(app, outcome);
  add_control(app, outcome);
  add_agent(app, outcome);
  add_gate(app, outcome);
  add_supervisor(app, outcome);
  add_pager(app, outcome);
  add_version(app, outcome);

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return Exit::ok;
  } catch (const CLI::ParseError& error) {
    if (const auto rest = app.remaining(); app.get_subcommands().empty() && !rest.empty()) {
      fmt::print(stderr, "yado: there is no command '{}' (see yado --help)\n", rest.front());
      return Exit::usage;
    }
    std::string command = "yado";
    for (const CLI::App* chosen = &app; !chosen->get_subcommands().empty();) {
      chosen = chosen->get_subcommands().back();
      command += " " + chosen->get_name();
    }
    fmt::print(stderr, "yado: {} (see {} --help)\n", error.what(), command);
    return Exit::usage;
  }
  return outcome.status;
}

void add_common(CLI::App& command, Common& common) {
  command.add_option("--control", common.control,
                     "Control's unix socket. Without it: $YADO_CONTROL, /run/yado/control.sock, or the only lab that runs")
      ->type_name("PATH");
  add_json(command, common.json);
}

void add_json(CLI::App& command, bool& json) { command.add_flag("--json", json, "Print JSON (docs/api.md) to stdout"); }

void add_workload(CLI::App& command, std::string& name) {
  command.add_option("workload", name, "Name of the workload")->required()->type_name("NAME");
}

std::vector<std::string> after_dashes(std::vector<std::string> given) {
  if (!given.empty() && given.front() == "--") given.erase(given.begin());
  return given;
}

void on_chosen(CLI::App& command, Outcome& outcome, std::function<int()> body) {
  command.callback([&outcome, body = std::move(body)] { outcome.status = body(); });
}

int complain(const Error& error) {
  fmt::print(stderr, "yado: {}\n", error.message);
  switch (error.code) {
    case Errc::invalid_argument: return Exit::usage;
    case Errc::not_found: return Exit::not_found;
    default: return Exit::failed;
  }
}

}  // namespace yado::cli
