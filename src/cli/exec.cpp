// yado exec: run a program inside the running instance.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"

namespace yado::cli {
namespace {

struct Options {
  Common common;
  std::string workload;
  std::vector<std::string> program;
  double timeout_s = 60;
};

int execute(const Options& options) {
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
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("exec", "Run a program inside the running instance; exits with its status");
  add_workload(*command, options->workload);
  command->add_option("command", options->program, "Program and arguments, after --")->required()->type_name("COMMAND");
  command->add_option("--timeout", options->timeout_s, "Seconds after which it is killed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->positionals_at_end();
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return execute(*options); });
}

}  // namespace yado::cli
