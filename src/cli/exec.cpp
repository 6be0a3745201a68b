// yado exec: run a program inside the running instance; or sit at the console of a VM.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/console.hpp"

namespace yado::cli {
namespace {

struct ExecOptions {
  Common common;
  std::string workload;
  std::vector<std::string> program;
  double timeout_s = 60;
  bool console = false;
  double linger_s = 1;
};

int execute(const ExecOptions& options) {
  if (options.console)
    return attach_console({options.common, options.workload, std::chrono::duration_cast<nanoseconds>(std::chrono::duration<double>(options.linger_s))});
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  const nlohmann::json body{{"command", after_dashes(options.program)}, {"timeout_ms", static_cast<std::int64_t>(options.timeout_s * 1000)}};
  auto answer = client->call("POST", fmt::format("/v1/workloads/{}/exec", options.workload), api::dump(body));
  if (!answer) return complain(*client, answer.error());
  if (options.common.json)
    fmt::print("{}\n", api::dump_pretty(*answer));
  else
    fmt::print("{}", answer->value("output", ""));
  return answer->value("status", 0);
}

}  // namespace

void add_exec(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<ExecOptions>();
  CLI::App* command = app.add_subcommand("exec", "Run a program inside the running instance; exits with its status");
  add_workload(*command, options->workload);
  CLI::Option* program = command->add_option("command", options->program, "Program and arguments, after --")->type_name("COMMAND");
  CLI::Option* console = command->add_flag("--console", options->console,
      "Instead of a program: this terminal at the serial console of a VM. Ctrl-] leaves it. Without a terminal, standard input is typed there");
  console->excludes(program);
  command->add_option("--linger", options->linger_s, "With --console, after the end of standard input: leave after so many silent seconds")
      ->check(CLI::NonNegativeNumber)->needs(console)->capture_default_str();
  command->add_option("--timeout", options->timeout_s, "Seconds after which it is killed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->positionals_at_end();
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] {
    if (!options->console && after_dashes(options->program).empty())
      return complain(Error{Errc::invalid_argument, "exec: name a program after --, or say --console"}), int(Exit::usage);
    return execute(*options);
  });
}

}  // namespace yado::cli
