// yado move: another host.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/relocate.hpp"

namespace yado::cli {

int relocate(const Common& common, const std::string& workload, const std::string& host, nlohmann::json body) {
  auto client = Client::control(common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  const std::uint64_t since = newest_event(*client);
  client->watch(fmt::format("/v1/events?follow=1&since={}", since), [workload](const nlohmann::json& event) {
    if (event.value("workload", "") == workload) fmt::print(stderr, "{}\n", describe_event(event));
  });
  if (!host.empty()) body["host"] = host;
  auto answer = client->call("POST", fmt::format("/v1/workloads/{}/move", workload), api::dump(body));
  if (!answer) return complain(*client, answer.error());
  if (common.json)
    fmt::print("{}\n", api::dump_pretty(*answer));
  else
    fmt::print("{} answers on {}\n", workload, (*answer)["route"].value("host", ""));
  return Exit::ok;
}

namespace {
struct Options {
  Common common;
  std::string workload, host;
};
}  // namespace

void add_move(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("move", "Move a workload to another host and wait until it answers there");
  add_workload(*command, options->workload);
  command->add_option("host", options->host, "Where to; without it, the best of the others")->type_name("HOST");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return relocate(options->common, options->workload, options->host, nlohmann::json::object()); });
}

}  // namespace yado::cli
