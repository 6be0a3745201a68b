// yado restore: raise the workload from its ready image on a host that holds it.

#include <algorithm>

#include <nlohmann/json.hpp>

#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/relocate.hpp"
#include "cli/split_over.hpp"

namespace yado::cli {
namespace {

struct RestoreOptions {
  Common common;
  std::string workload, host, over;
};

/// Its image is of what ran, and no start replaces that.
bool has_memory_of_its_own(const nlohmann::json& workload) { return workload["spec"].contains("vm") && workload["spec"]["vm"].contains("split"); }

int restore(const RestoreOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto workload = client->call("GET", fmt::format("/v1/workloads/{}", options.workload));
  if (!workload) return complain(*client, workload.error());
  const auto& image = (*workload)["image"];
  if (!image.is_object() || !image.value("current", false))
    return complain(Error{Errc::conflict, fmt::format("{} has no ready image of its current spec: see `yado checkpoint`",
                                                      options.workload)});
  const auto holders = image.value("holders", std::vector<std::string>());
  const std::string owner = (*workload)["owner"].is_object() ? (*workload)["owner"].value("host", "") : "";
  std::string host = options.host;
  nlohmann::json more = {{"from_image", true}};
  if (!options.over.empty()) {
    const std::string main = options.over.substr(0, options.over.find_first_of(":,"));
    auto split = split_over(options.over, (*workload)["spec"], main);
    if (!split) return complain(split.error());
    if (!host.empty() && host != main)
      return complain(Error{Errc::invalid_argument, fmt::format("--over begins with {}, but HOST is {}", main, host)});
    host = main;
    more["split"] = std::move(*split);
  }
  if (host.empty()) {
    auto other = std::ranges::find_if(holders, [&](const std::string& holder) { return holder != owner; });
    if (other != holders.end()) host = *other;
  }
  if (std::ranges::find(holders, host) == holders.end())
    return complain(Error{Errc::conflict, fmt::format("{} lies on {}, not on {}", image.value("id", ""),
                                                      fmt::join(holders, ", "), host.empty() ? "another host" : host)});
  const int moved = relocate(options.common, options.workload, host, std::move(more));
  if (moved != Exit::ok || !has_memory_of_its_own(*workload)) return moved;
  auto now = client->call("GET", fmt::format("/v1/workloads/{}", options.workload));
  if (!now) return complain(*client, now.error());
  if ((*now)["raised_from"].is_string()) return Exit::ok;
  return complain(Error{Errc::unavailable, fmt::format("{} was started anew, and not from {}, which could not be had (the event \"ready\" says why): what its memory held then is still in the image",
                                                       options.workload, image.value("id", ""))});
}

}  // namespace

void add_restore(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<RestoreOptions>();
  CLI::App* command =
      app.add_subcommand("restore", "Move a workload to a host that holds its ready image, where it is restored from it");
  add_workload(*command, options->workload);
  command->add_option("host", options->host, "One of the hosts that `yado images` names; without it, one that is not the owner's")
      ->type_name("HOST");
  command->add_option("--over", options->over, "For a VM with split memory: its main host and what it holds there, then who keeps the rest: h1:1.5GiB,h4; one host alone: all of it")
      ->type_name("HOST[:SIZE][,HOST...]");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return restore(*options); });
}

}  // namespace yado::cli
