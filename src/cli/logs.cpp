// yado logs: the last lines of the owner's standard output and error.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"

namespace yado::cli {
namespace {

struct LogsOptions {
  Common common;
  std::string workload;
  std::uint64_t lines = 100;
};

int show(const LogsOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto answer = client->call("GET", fmt::format("/v1/workloads/{}/logs?lines={}", options.workload, options.lines));
  if (!answer) return complain(*client, answer.error());
  if (options.common.json) {
    fmt::print("{}\n", api::dump_pretty(*answer));
    return Exit::ok;
  }
  for (const auto& line : answer->value("lines", std::vector<std::string>())) fmt::print("{}\n", line);
  return Exit::ok;
}

}  // namespace

void add_logs(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<LogsOptions>();
  CLI::App* command = app.add_subcommand("logs", "Show the last lines that the running instance wrote to stdout and stderr");
  add_workload(*command, options->workload);
  command->add_option("-n,--lines", options->lines, "How many")->type_name("N")->capture_default_str();
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return show(*options); });
}

}  // namespace yado::cli
