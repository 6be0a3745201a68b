// yado images: the ready images and who holds them.

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
  auto answer = client->call("GET", "/v1/images");
  if (!answer) return complain(*client, answer.error());
  if (common.json) {
    fmt::print("{}\n", api::dump_pretty(*answer));
    return Exit::ok;
  }
  std::vector<std::vector<std::string>> rows{{"IMAGE", "WORKLOAD", "CURRENT", "SIZE", "AGE", "HELD BY"}};
  for (const auto& one : (*answer)["images"]) {
    const auto holders = one.value("holders", std::vector<std::string>());
    rows.push_back({one.value("id", ""), one.value("workload", ""), one.value("current", false) ? "yes" : "no",
                    format_bytes(one.value("bytes", 0ull)), format_age(one.value("age_ms", 0ll)),
                    fmt::format("{}", fmt::join(holders, ", "))});
  }
  fmt::print("{}", format_table(rows));
  return Exit::ok;
}

}  // namespace

void add_images(CLI::App& app, Outcome& outcome) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("images", "List the ready images and the hosts that hold them");
  add_common(*command, *common);
  on_chosen(*command, outcome, [common] { return list(*common); });
}

}  // namespace yado::cli
