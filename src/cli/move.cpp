// yado move: another host.

#include <optional>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/memory_progress.hpp"
#include "cli/relocate.hpp"
#include "cli/split_over.hpp"

namespace yado::cli {

int relocate(const Common& common, const std::string& workload, const std::string& host, nlohmann::json body) {
  if (!host.empty()) body["host"] = host;
  return relocate_by(common, workload, fmt::format("/v1/workloads/{}/move", workload), body);
}

int relocate_by(const Common& common, const std::string& workload, const std::string& path, const nlohmann::json& body) {
  auto client = Client::control(common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  const std::uint64_t since = newest_event(*client);
  std::optional<MemoryProgress> progress;
  if (!common.json) progress.emplace(*client, workload);
  client->watch(fmt::format("/v1/events?follow=1&since={}", since), [&](const nlohmann::json& event) {
    if (event.value("workload", "") != workload) return;
    if (progress) progress->print(describe_event(event));
    else fmt::print(stderr, "{}\n", describe_event(event));
  });
  auto answer = client->call("POST", path, api::dump(body));
  progress.reset();
  if (!answer) return complain(*client, answer.error());
  if (common.json)
    fmt::print("{}\n", api::dump_pretty(*answer));
  else
    fmt::print("{} answers on {}\n", workload, (*answer)["route"].value("host", ""));
  return Exit::ok;
}

namespace {
struct MoveOptions {
  Common common;
  std::string workload, host, over;
};

int move(const MoveOptions& options) {
  nlohmann::json more = nlohmann::json::object();
  if (!options.over.empty()) {
    auto client = Client::control(options.common.control);
    if (!client) return complain(client.error()), Exit::no_control;
    auto workload = client->call("GET", fmt::format("/v1/workloads/{}", options.workload));
    if (!workload) return complain(*client, workload.error());
    const std::string owner = (*workload)["owner"].is_object() ? (*workload)["owner"].value("host", "") : "";
    auto split = split_over(options.over, (*workload)["spec"], options.host.empty() ? owner : options.host);
    if (!split) return complain(split.error());
    more["split"] = std::move(*split);
  }
  return relocate(options.common, options.workload, options.host, std::move(more));
}
}  // namespace

void add_move(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<MoveOptions>();
  CLI::App* command = app.add_subcommand("move", "Move a workload to another host, or the memory of a VM to other hosts, and wait until it is there");
  add_workload(*command, options->workload);
  command->add_option("host", options->host, "Where to; without it, the best of the others")->type_name("HOST");
  command->add_option("--over", options->over, "For a VM with split memory, while it runs: how much of it stays on its host, and who keeps the rest: h1:1GiB,h2,h3; its host alone: all of it")
      ->type_name("HOST[:SIZE][,HOST...]");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return move(*options); });
}

}  // namespace yado::cli
