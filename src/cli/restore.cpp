// yado restore: raise the workload, or a clone of it, from its ready image on a host that holds it.

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
  std::string workload, host, over, as;
  std::vector<std::string> service_hosts;
};

/// Its image is of what ran, and no start replaces that.
bool has_memory_of_its_own(const nlohmann::json& workload) { return workload["spec"].contains("vm") && workload["spec"]["vm"].contains("split"); }

/// Where, as it was asked for: "host" and "split", each only if something was said.
Result<nlohmann::json> where(const RestoreOptions& options, const nlohmann::json& spec) {
  nlohmann::json asked = nlohmann::json::object();
  if (!options.host.empty()) asked["host"] = options.host;
  if (options.over.empty()) return asked;
  const std::string main = options.over.substr(0, options.over.find_first_of(":,"));
  if (!options.host.empty() && options.host != main)
    return fail(Errc::invalid_argument, "--over begins with {}, but HOST is {}", main, options.host);
  asked["host"] = main;
  YADO_ASSIGN(asked["split"], split_over(options.over, spec, main), "--over");
  return asked;
}

/// Beside it, which runs on. Where it cannot begin from the image it does not begin at all.
int restore_as_clone(const RestoreOptions& options, nlohmann::json asked) {
  asked["as"] = options.as;
  if (!options.service_hosts.empty()) asked["service_hosts"] = options.service_hosts;
  return relocate_by(options.common, options.as, fmt::format("/v1/workloads/{}/clone", options.workload), asked);
}

int restore_in_place(const RestoreOptions& options, const nlohmann::json& workload, nlohmann::json asked, Client& client) {
  const auto& image = workload["image"];
  const auto holders = image.value("holders", std::vector<std::string>());
  const std::string owner = workload["owner"].is_object() ? workload["owner"].value("host", "") : "";
  std::string host = asked.value("host", "");
  if (host.empty()) {
    auto other = std::ranges::find_if(holders, [&](const std::string& holder) { return holder != owner; });
    if (other != holders.end()) host = *other;
  }
  if (std::ranges::find(holders, host) == holders.end()) {
    std::string why = fmt::format("{} lies on {}, not on {}", image.value("id", ""), fmt::join(holders, ", "), host.empty() ? "another host" : host);
    if (!image.value("redundant", false)) why += ": its copies are still on their way; try again, or name one of the hosts that have it";
    return complain(Error{Errc::conflict, why});
  }
  asked["from_image"] = true;
  const int moved = relocate(options.common, options.workload, host, std::move(asked));
  if (moved != Exit::ok || !has_memory_of_its_own(workload)) return moved;
  auto now = client.call("GET", fmt::format("/v1/workloads/{}", options.workload));
  if (!now) return complain(client, now.error());
  if ((*now)["raised_from"].is_string()) return Exit::ok;
  return complain(Error{Errc::unavailable, fmt::format("{} was started anew, and not from {}, which could not be had (the event \"ready\" says why): what its memory held then is still in the image",
                                                       options.workload, image.value("id", ""))});
}

int restore(const RestoreOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto workload = client->call("GET", fmt::format("/v1/workloads/{}", options.workload));
  if (!workload) return complain(*client, workload.error());
  const auto& image = (*workload)["image"];
  if (!image.is_object() || !image.value("current", false))
    return complain(Error{Errc::conflict, fmt::format("{} has no ready image of its current spec: see `yado checkpoint`",
                                                      options.workload)});
  auto asked = where(options, (*workload)["spec"]);
  if (!asked) return complain(asked.error());
  if (!options.as.empty()) return restore_as_clone(options, std::move(*asked));
  return restore_in_place(options, *workload, std::move(*asked), *client);
}

}  // namespace

void add_restore(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<RestoreOptions>();
  CLI::App* command =
      app.add_subcommand("restore", "Move a workload to a host that holds its ready image, where it is restored from it; or begin a clone of it there");
  add_workload(*command, options->workload);
  command->add_option("host", options->host, "One of the hosts that `yado images` names; without it, one that is not the owner's")
      ->type_name("HOST");
  command->add_option("--over", options->over, "For a VM with split memory: its main host and what it holds there, then who keeps the rest: h1:1.5GiB,h4; one host alone: all of it")
      ->type_name("HOST[:SIZE][,HOST...]");
  CLI::Option* as = command->add_option("--as", options->as, "For a VM with split memory: a second one of this name, from the same image; what runs goes on")->type_name("NAME");
  command->add_option("--service-host", options->service_hosts, "HTTP host names that lead to the clone; without, its name in the domain of the first that leads to its origin")
      ->type_name("HOSTNAME")->allow_extra_args(false)->needs(as);
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return restore(*options); });
}

}  // namespace yado::cli
