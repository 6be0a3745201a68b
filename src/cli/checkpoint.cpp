// yado checkpoint: a new ready image, now.

#include <optional>

#include <nlohmann/json.hpp>

#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/memory_progress.hpp"
#include "cli/rate_limit.hpp"

namespace yado::cli {
namespace {

struct CheckpointOptions {
  Common common;
  std::string workload;
  bool incremental = false;
  std::string limit;
};

int checkpoint(const CheckpointOptions& options) {
  std::uint64_t bytes_per_second = 0;
  if (!options.limit.empty()) {
    const auto limit = parse_rate_limit("--limit", options.limit);
    if (!limit) return complain(limit.error());
    bytes_per_second = *limit;
  }
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  const std::uint64_t since = newest_event(*client);
  const std::string wish = nlohmann::json{{"incremental", options.incremental}, {"bytes_per_second", bytes_per_second}}.dump();
  auto asked = client->call("POST", fmt::format("/v1/workloads/{}/checkpoint", options.workload), wish);
  if (!asked) return complain(*client, asked.error());
  // The image is built in the background: its events say how it ends.
  int status = Exit::failed;
  std::optional<MemoryProgress> progress;
  if (!options.common.json) progress.emplace(*client, options.workload);
  auto followed = client->follow(fmt::format("/v1/events?follow=1&since={}", since), [&](const nlohmann::json& event) {
    if (event.value("workload", "") != options.workload) return true;
    const std::string kind = event.value("kind", "");
    if (progress) progress->print(describe_event(event));
    if (kind == "image") {
      if (options.common.json)
        fmt::print("{}\n", event.dump());
      else
        fmt::print("{} of {} is ready on {}{}{}\n", event["fields"].value("image", ""), options.workload, event.value("host", ""),
                   event["fields"].contains("detail") ? ": " : "", event["fields"].value("detail", ""));
      status = Exit::ok;
      return false;
    }
    if (kind == "image-failed") {
      status = complain(Error{Errc::application, event["fields"].value("error", "")});
      return false;
    }
    if (kind == "stopped") return false;
    return true;
  });
  return followed ? status : complain(*client, followed.error());
}

}  // namespace

void add_checkpoint(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<CheckpointOptions>();
  CLI::App* command = app.add_subcommand("checkpoint", "Take a new ready image of a workload and wait for it");
  add_workload(*command, options->workload);
  command->add_flag("--incremental", options->incremental,
                    "Of a VM with split memory: save only what changed since its current image, which is kept as long as this one. All is saved "
                    "where that cannot be, and the answer says why");
  command->add_option("--limit", options->limit,
                      "Of a VM with split memory: what each host writes at most for this checkpoint, such as \"50MiB/s\"; its spec's checkpoint_rate counts, too")
      ->type_name("RATE");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return checkpoint(*options); });
}

}  // namespace yado::cli
