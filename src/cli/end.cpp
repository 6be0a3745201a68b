// yado stop, yado rm: the end of a workload, for now or for good.

#include <nlohmann/json.hpp>

#include "cli/client.hpp"
#include "cli/command.hpp"

namespace yado::cli {
namespace {

struct End {
  const char *name, *about;
  const char *method, *path;  ///< below the workload's own path
  const char* done;
};

constexpr End stop{"stop", "Stop a workload; it keeps its images, and `yado run` starts it again", "POST", "/stop", "stopped"};
constexpr End remove{"rm", "Stop a workload and remove its instances, standbys and images", "DELETE", "", "removed"};

struct EndOptions {
  Common common;
  std::string workload;
};

int carry_out(const End& end, const EndOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto answer = client->call(end.method, fmt::format("/v1/workloads/{}{}", options.workload, end.path));
  if (!answer) return complain(*client, answer.error());
  if (options.common.json) fmt::print("{}\n", answer->dump());
  else fmt::print("{} is {}\n", options.workload, end.done);
  return Exit::ok;
}

void add(CLI::App& app, Outcome& outcome, const End& end) {
  auto options = std::make_shared<EndOptions>();
  CLI::App* command = app.add_subcommand(end.name, end.about);
  add_workload(*command, options->workload);
  add_common(*command, options->common);
  on_chosen(*command, outcome, [&end, options] { return carry_out(end, *options); });
}

}  // namespace

void add_stop(CLI::App& app, Outcome& outcome) { add(app, outcome, stop); }
void add_rm(CLI::App& app, Outcome& outcome) { add(app, outcome, remove); }

}  // namespace yado::cli
