// yado events: what happened, and what happens.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"

namespace yado::cli {
namespace {

struct EventsOptions {
  Common common;
  std::string workload;
  std::uint64_t since = 0;
  std::uint64_t limit = 100;
  bool follow = false;
};

int show(const EventsOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  std::string target = fmt::format("/v1/events?limit={}", options.limit);
  if (options.since > 0) target += fmt::format("&since={}", options.since);
  if (options.follow) target += "&follow=1";
  auto shown = client->follow(target, [&](const nlohmann::json& event) {
    if (!options.workload.empty() && event.value("workload", "") != options.workload) return true;
    fmt::print("{}\n", options.common.json ? api::dump(event) : describe_event(event));
    std::fflush(stdout);  // somebody may be reading through a pipe
    return true;
  });
  return shown ? int(Exit::ok) : complain(*client, shown.error());
}

}  // namespace

void add_events(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<EventsOptions>();
  CLI::App* command = app.add_subcommand("events", "Show what happened: one line per event, oldest first");
  command->add_flag("-f,--follow", options->follow, "Go on with what happens, until interrupted");
  command->add_option("--since", options->since, "Only events with a higher number (`seq` in --json)")->type_name("SEQ");
  command->add_option("-n,--limit", options->limit, "At most so many; without --since the newest")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--workload", options->workload, "Only this workload's")->type_name("NAME");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return show(*options); });
}

}  // namespace yado::cli
