// yado agent: the role of a host.

#include "agent/agent.hpp"
#include "spec/values.hpp"

#include <boost/asio/co_spawn.hpp>

#include "cli/command.hpp"
#include "cli/rate_limit.hpp"
#include "cli/role.hpp"

namespace yado::cli {
namespace {

struct AgentOptions {
  std::string host, address, control, identity = "/var/lib/yado/agent/identity";
  std::string state = "/var/lib/yado/agent", cgroup = "yado", criu, log = "info";
  std::uint16_t port = 0;
  std::string memory, background_rate;
};

int serve(const AgentOptions& options) {
  start_log("agent " + options.host, options.log);
  if (!valid_name(options.host))
    return complain(Error{Errc::invalid_argument, fmt::format("--host: \"{}\" is no valid name", options.host)});
  auto control = parse_endpoint(options.control, control_port);
  if (!control) return complain(control.error());
  agent::Config config;
  config.host = HostId(options.host);
  config.address = options.address;
  config.port = options.port;
  config.control = *control;
  config.identity = options.identity;
  config.state_directory = options.state;
  config.cgroup = options.cgroup;
  config.criu = options.criu;
  if (!options.memory.empty()) {
    const auto bytes = spec::parse_size(options.memory);
    if (!bytes) return complain(Error{Errc::invalid_argument, "--memory: " + bytes.error().message});
    config.memory_bytes = *bytes;
  }
  if (!options.background_rate.empty()) {
    const auto bytes = parse_rate_limit("--background-rate", options.background_rate);
    if (!bytes) return complain(bytes.error());
    config.background_bytes_per_second = *bytes;
  }
  config.supervisor = {std::filesystem::read_symlink("/proc/self/exe").native(), "supervisor"};

  boost::asio::io_context io(1);
  agent::Agent agent(io, std::move(config));
  Status ended;
  auto listening = [](std::uint16_t port) { log::info("listening on port {}", port); };
  boost::asio::co_spawn(io, agent.run(listening), [&](std::exception_ptr error, Status status) {
    ended = error ? Status(fail(Errc::internal, "the agent ended by an exception")) : std::move(status);
    io.stop();
  });
  serve_until_signal(io, [&] { agent.stop(); });
  return ended ? int(Exit::ok) : (complain(ended.error()), int(Exit::failed));
}

}  // namespace

void add_agent(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<AgentOptions>();
  CLI::App* command = app.add_subcommand(
      "agent", "Role: runs workloads on this host. Ends with SIGTERM; what runs goes on and is adopted by the next agent");
  command->add_option("--host", options->host, "Name of this host in the cluster")->required()->type_name("NAME");
  command->add_option("--address", options->address, "IPv4 address of this host at which others reach it")
      ->required()
      ->type_name("ADDRESS");
  command->add_option("--port", options->port, "Port of the agent's API; 0: the one of the last time, or any free one")
      ->capture_default_str();
  command->add_option("--control", options->control, "Where control listens for agents")->required()->type_name("ADDRESS[:PORT]");
  command->add_option("--identity", options->identity, "Directory made by `yado control issue agent:NAME`")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--state", options->state, "Directory of instances and images")->type_name("DIR")->capture_default_str();
  command->add_option("--cgroup", options->cgroup, "Control group of the instances, below every hierarchy's root")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--criu", options->criu, "CRIU for checkpoints; without it, starts are cold and nothing else is lost")
      ->type_name("PATH");
  command->add_option("--memory", options->memory, "What its memory server may keep for VMs of other hosts: \"4GiB\", 0 for none; without it, half of the machine's")
      ->type_name("SIZE");
  command->add_option("--background-rate", options->background_rate,
                      "What copying and merging images may take of its disk and links together while nobody waits for them: \"50MiB/s\"; without it, all")
      ->type_name("RATE");
  add_log_level(*command, options->log);
  on_chosen(*command, outcome, [options] { return serve(*options); });
}

}  // namespace yado::cli
