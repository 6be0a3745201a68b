// yado gate: the front door.

#include "gate/gate.hpp"

#include "cli/command.hpp"
#include "cli/role.hpp"

namespace yado::cli {
namespace {

struct GateOptions {
  std::vector<std::string> listen;
  std::vector<int> inherited;
  std::string control, identity = "/var/lib/yado/gate/identity", table = "/var/lib/yado/gate/routes.json", admin, log = "info";
  int number = 1;
};

int serve(GateOptions& options) {
  start_log("gate", options.log);
  auto control = parse_endpoint(options.control, control_port);
  if (!control) return complain(control.error());
  gate::Gate::Config config;
  for (const std::string& text : options.listen) {
    auto endpoint = parse_endpoint(text, 0);
    if (!endpoint) return complain(endpoint.error());
    config.listen.push_back(*endpoint);
  }
  for (int fd : options.inherited) config.inherited.emplace_back(fd);
  if (config.listen.empty() && config.inherited.empty())
    return complain(Error{Errc::invalid_argument, "nothing to listen on: give --listen ADDRESS:PORT"});
  auto identity = wire::Identity::load(options.identity);
  if (!identity) return complain(identity.error()), Exit::failed;
  config.control = *control;
  config.identity = std::move(*identity);
  config.granter = static_cast<std::uint8_t>(options.number);
  config.table_file = options.table;
  config.admin_socket = options.admin;

  boost::asio::io_context io(1);
  gate::Gate gate(io, std::move(config));
  if (Status running = gate.run(); !running) return complain(running.error()), Exit::failed;
  log::info("listening on port {}", fmt::join(gate.ports(), ", "));
  serve_until_signal(io, [&] { gate.stop(); });
  return Exit::ok;
}

}  // namespace

void add_gate(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<GateOptions>();
  CLI::App* command = app.add_subcommand("gate", "Role: the front door, an HTTP/1.1 reverse proxy. Ends with SIGTERM");
  command->add_option("--listen", options->listen, "Where clients connect; may be repeated")->type_name("ADDRESS:PORT");
  command->add_option("--inherited", options->inherited, "A descriptor that listens already (socket activation)")->type_name("FD");
  command->add_option("--control", options->control, "Where control listens for gates")->required()->type_name("ADDRESS[:PORT]");
  command->add_option("--identity", options->identity, "Directory made by `yado control issue gate:NAME`")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--table", options->table, "Keeps the last route table, for a start without control; \"\": nowhere")
      ->type_name("FILE")
      ->capture_default_str();
  command->add_option("--admin", options->admin, "Unix socket (mode 0600) that answers GET /v1/gate")->type_name("PATH");
  command->add_option("--number", options->number, "This gate's own number, in the epochs it grants while control is down")
      ->check(CLI::Range(1, 255))
      ->capture_default_str();
  add_log_level(*command, options->log);
  on_chosen(*command, outcome, [options] { return serve(*options); });
}

}  // namespace yado::cli
