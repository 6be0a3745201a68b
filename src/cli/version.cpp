// yado version: of this program, and of the control that answers.

#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"

namespace yado::cli {
namespace {

int show(const Common& common) {
  nlohmann::json versions{{"yado", YADO_VERSION}, {"api", api::version}, {"control", nullptr}};
  // Nobody has to run for a program to say what it is.
  if (auto client = Client::control(common.control))
    if (auto answer = client->call("GET", "/v1/version")) versions["control"] = *answer;
  if (common.json) {
    fmt::print("{}\n", api::dump_pretty(versions));
    return Exit::ok;
  }
  fmt::print("yado {} (API {})\n", YADO_VERSION, api::version);
  if (const auto& control = versions["control"]; control.is_object()) {
    fmt::print("control {} (API {})\n", control.value("version", ""), control.value("api", 0));
    if (control.contains("trouble")) fmt::print("control is in trouble: {}\n", control.value("trouble", ""));
  }
  return Exit::ok;
}

}  // namespace

void add_version(CLI::App& app, Outcome& outcome) {
  auto common = std::make_shared<Common>();
  CLI::App* command = app.add_subcommand("version", "Print the version of this program and of the control that answers");
  add_common(*command, *common);
  on_chosen(*command, outcome, [common] { return show(*common); });
}

}  // namespace yado::cli
