// yado stop: end the workload; `yado run` starts it again.

#include <nlohmann/json.hpp>

#include "cli/client.hpp"
#include "cli/command.hpp"

namespace yado::cli {
namespace {

struct Options {
  Common common;
  std::string workload;
};

int carry_out(const Options& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto answer = client->call("POST", fmt::format("/v1/workloads/{}/stop", options.workload));
  if (!answer) return complain(*client, answer.error());
  if (options.common.json)
    fmt::print("{}\n", answer->dump());
  else
    fmt::print("{} is stopped\n", options.workload);
  return Exit::ok;
}

}  // namespace

void add_stop(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("stop", "Stop a workload; it keeps its images, and `yado run` starts it again");
  add_workload(*command, options->workload);
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return carry_out(*options); });
}

}  // namespace yado::cli
