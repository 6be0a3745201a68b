// yado hosts: the hosts.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/table.hpp"

namespace yado::cli {
namespace {

int list(const Common& common) {
  auto client = Client::control(common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto answer = client->call("GET", "/v1/hosts");
  if (!answer) return complain(*client, answer.error());
  if (common.json) {
    fmt::print("{}\n", api::dump_pretty(*answer));
    return Exit::ok;
  }
  std::vector<std::vector<std::string>> rows{
      {"HOST", "ALIVE", "HEARD", "AGENT", "LOAD", "FREE", "CHECKPOINTS", "INSTANCES", "IMAGES"}};
  for (const auto& one : (*answer)["hosts"]) {
    std::string instances;
    for (const auto& instance : one["instances"])
      instances += fmt::format("{}{} ({})", instances.empty() ? "" : ", ", instance.value("id", ""), instance.value("purpose", ""));
    rows.push_back({one.value("host", ""), one.value("alive", false) ? "yes" : "no",
                    format_age(one.value("heard_ms", 0ll)) + " ago",
                    fmt::format("{}:{}", one["agent"].value("address", ""), one["agent"].value("port", 0)),
                    fmt::format("{:.1f}", one.value("load", 0.0)), format_bytes(one.value("memory_free_bytes", 0ull)),
                    one.value("checkpoint_works", false) ? "yes" : "no", instances, std::to_string(one["images"].size())});
  }
  fmt::print("{}", format_table(rows));
  return Exit::ok;
}

}  // namespace

void add_hosts(CLI::App& app, Outcome& outcome) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("hosts", "List the hosts: alive or not, and what is on them");
  add_common(*command, *common);
  on_chosen(*command, outcome, [common] { return list(*common); });
}

}  // namespace yado::cli
