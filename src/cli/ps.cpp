// yado ps: the workloads.

#include <algorithm>
#include <ranges>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/table.hpp"
#include "model/ids.hpp"

namespace yado::cli {
namespace {

/// "h1 1.0 GiB + h2 512 MiB": where the memory of a VM is that several hosts keep. Empty for all others, and when its host does not say so.
std::string memory_of(Client& client, const nlohmann::json& workload) {
  const auto& spec = workload["spec"];
  if (workload.value("state", "") != "up" || !spec.contains("vm") || !spec["vm"].contains("split")) return "";
  auto memory = client.call("GET", fmt::format("/v1/workloads/{}/memory", workload.value("name", "")));
  if (!memory) return "";
  const auto part = [](const std::string& host, std::uint64_t bytes) { return host + " " + format_bytes(bytes); };
  std::string text = part(workload["owner"].value("host", ""), memory->value("local_bytes", std::uint64_t{0}));
  for (const auto& server : memory->value("servers", nlohmann::json::array()))
    text += " + " + part(server.value("host", ""), server.value("pages", std::uint64_t{0}) * 4096);
  return text;
}

int list_workloads(const Common& common) {
  auto client = Client::control(common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto answer = client->call("GET", "/v1/workloads");
  if (!answer) return complain(*client, answer.error());
  if (common.json) {
    fmt::print("{}\n", api::dump_pretty(*answer));
    return Exit::ok;
  }
  std::vector<std::vector<std::string>> rows{
      {"WORKLOAD", "STATE", "HOST", "EPOCH", "INSTANCE", "STANDBY", "IMAGE COPIES", "ADDRESS", "NOTE", "MEMORY"}};
  for (const auto& one : (*answer)["workloads"]) {
    const auto &owner = one["owner"], &standby = one["standby"], &image = one["image"];
    const bool up = owner.is_object();
    std::string copies;
    if (image.is_object())
      copies = fmt::format("{}{}", image["holders"].size(), !image.value("current", false) ? " (outdated)" : image.value("redundant", false) ? "" : " (not redundant)");
    rows.push_back({one.value("name", ""), one.value("state", ""), up ? owner.value("host", "") : "",
                    fmt::format("{}", Epoch(one.value("epoch", std::uint64_t{0}))), up ? owner.value("instance", "") : "",
                    standby.is_object() ? fmt::format("{} on {}", standby.value("state", ""), standby.value("host", "")) : "",
                    copies,
                    up ? fmt::format("{}:{}", owner["endpoint"].value("address", ""), owner["endpoint"].value("port", 0)) : "",
                    one.value("note", ""), memory_of(*client, one)});
  }
  if (std::ranges::all_of(rows | std::views::drop(1), [](const auto& row) { return row.back().empty(); }))
    for (auto& row : rows) row.pop_back();
  fmt::print("{}", format_table(rows));
  return Exit::ok;
}

}  // namespace

void add_ps(CLI::App& app, Outcome& outcome) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("ps", "List the workloads: where they run, and what stands by");
  add_common(*command, *common);
  on_chosen(*command, outcome, [common] { return list_workloads(*common); });
}

}  // namespace yado::cli
