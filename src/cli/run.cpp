// yado run: deploy a workload from its spec, and show what happens until it answers.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/run.hpp"
#include "os/file.hpp"
#include "spec/spec.hpp"

extern char** environ;

namespace yado::cli {
namespace {

spec::Environment environment() {
  spec::Environment all;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text = *entry;
    if (const auto end = text.find('='); end != text.npos) all.emplace(text.substr(0, end), text.substr(end + 1));
  }
  return all;
}

void print_plan(const nlohmann::json& plan) {
  fmt::print("change: {}\n", plan.value("change", ""));
  int rank = 1;
  for (const auto& host : plan["hosts"])
    fmt::print("{}. {} ({} start)\n", rank++, host.value("host", ""), host.value("way", ""));
  for (const auto& host : plan["left_out"]) fmt::print("not {}: {}\n", host.value("host", ""), host.value("why", ""));
}

}  // namespace

int run_spec(const RunOptions& options) {
  auto text = os::read_text(options.file);
  if (!text) {
    fmt::print(stderr, "yado: {}\n", text.error().message);
    return Exit::usage;
  }
  auto spec = spec::parse(*text, options.file, environment());
  if (!spec) {
    fmt::print(stderr, "{}\n", spec.error().message);  // one line per mistake, each with file:line:column
    return Exit::usage;
  }
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;

  const std::string name = spec->name.str();
  if (!options.dry_run && !options.quiet) {
    const std::uint64_t since = newest_event(*client);
    client->watch(fmt::format("/v1/events?follow=1&since={}", since), [name](const nlohmann::json& event) {
      if (event.value("workload", "") == name) fmt::print(stderr, "{}\n", describe_event(event));
    });
  }
  nlohmann::json body = *spec;
  auto answer = client->call("PUT", fmt::format("/v1/workloads/{}{}", name, options.dry_run ? "?dry_run=1" : ""),
                             api::dump(body));
  if (!answer) return complain(*client, answer.error());
  if (options.dry_run && options.quiet) return Exit::ok;
  if (options.common.json) {
    fmt::print("{}\n", api::dump_pretty(*answer));
  } else if (options.dry_run) {
    print_plan(*answer);
  } else {
    const auto& route = (*answer)["route"];
    fmt::print("{} answers on {} ({}:{})\n", name, route.value("host", ""), route["endpoint"].value("address", ""),
               route["endpoint"].value("port", 0));
  }
  return Exit::ok;
}

void add_run(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Deploy a workload from its spec (docs/spec.md) and wait until it answers");
  command->add_option("spec", options->file, "TOML file")->required()->type_name("FILE");
  command->add_flag("--dry-run", options->dry_run, "Print what would change and where it would run; do nothing");
  command->add_flag("-q,--quiet", options->quiet, "Do not print the workload's events to stderr while waiting; with --dry-run only errors");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return run_spec(*options); });
}

}  // namespace yado::cli
