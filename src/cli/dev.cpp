// yado dev: a whole cluster on this machine, for trying and testing. Same code, same API, real failures.

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/signal_set.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/dev_cluster.hpp"
#include "cli/role.hpp"

namespace yado::cli {
namespace asio = boost::asio;
namespace fs = std::filesystem;

namespace {

struct DevArguments {
  std::string name = "dev", listen = "127.0.0.1:8080", directory = "/run/yado", criu, log = "info";
  std::uint32_t hosts = 3;
  std::uint64_t disk = 0, link = 0;
  bool json = false;
  // exec
  std::string host = "front";
  std::vector<std::string> command;
};

/// Given, or where tools/install-criu is told to put it, or the system's own.
fs::path find_criu(const std::string& given) {
  if (!given.empty()) return given == "none" ? "" : given;
  if (const char* named = std::getenv("YADO_CRIU"); named && *named) return named;
  for (const char* usual : {"/opt/yado/criu/bin/criu", "/usr/local/sbin/criu", "/usr/sbin/criu"})
    if (::access(usual, X_OK) == 0) return usual;
  return {};
}

void greet(const DevCluster& cluster) {
  const nlohmann::json lab = cluster.describe();
  std::string hosts;
  for (const auto& host : lab["hosts"]) hosts += fmt::format(" {} ({})", host.value("host", ""), host.value("address", ""));
  const bool only = cluster.options().lab.run_directory == "/run/yado";
  const std::string control = only ? "" : " --control " + cluster.control_socket();
  fmt::print("lab {}:{}\n", lab.value("name", ""), hosts);
  fmt::print("logs in {}\n", (cluster.directory() / "log").native());
  if (cluster.options().criu.empty())
    fmt::print("no CRIU: cold starts and started-then-frozen standbys only (tools/install-criu; --criu PATH)\n");
  fmt::print("control: {}\n\nTry, in another terminal:\n", cluster.control_socket());
  fmt::print("  yado run{} site.toml\n  yado ps{}\n", control, control);
  fmt::print("  curl -H 'Host: site.test' http://{}/\n", lab.value("gate", ""));
  fmt::print("  yado drill{} host-silent --workload site\n\nCtrl-C ends the lab and leaves nothing.\n\n", control);
  std::fflush(stdout);
}

/// What a person wants to see pass by; everything is in `yado events`.
bool notable(const nlohmann::json& event) { return event.value("kind", "") != "control-started"; }

int serve(const DevArguments& options) {
  start_log("dev", options.log == "debug" ? "debug" : "warn");
  auto listen = parse_endpoint(options.listen, 8080);
  if (!listen) return complain(listen.error());
  DevOptions made;
  made.lab.name = options.name;
  made.lab.hosts = options.hosts;
  made.lab.disk_bytes = options.disk;
  made.lab.link_bits_per_second = options.link;
  made.lab.run_directory = options.directory;
  made.listen = *listen;
  made.criu = find_criu(options.criu);
  made.log = options.log;

  asio::io_context io(1);
  auto cluster = DevCluster::create(io, std::move(made));
  if (!cluster) return complain(cluster.error());
  auto api = LabApi::serve(io, **cluster);
  if (!api) return complain(api.error()), Exit::failed;

  Status ended;
  asio::signal_set signals(io, SIGINT, SIGTERM, SIGHUP);
  signals.async_wait([&](const boost::system::error_code&, int) { io.stop(); });
  auto show = [](const nlohmann::json& event) {
    if (!notable(event)) return;
    fmt::print("{}\n", describe_event(event));
    std::fflush(stdout);
  };
  asio::co_spawn(io, (*cluster)->start(show), [&](std::exception_ptr, Status status) {
    ended = std::move(status);
    if (ended)
      greet(**cluster);
    else
      io.stop();
  });
  io.run();
  // A second Ctrl-C would otherwise end this process while it takes the lab down, and leave half of it.
  sigset_t ending{};
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&ending, signal);
  ::pthread_sigmask(SIG_BLOCK, &ending, nullptr);
  return ended ? int(Exit::ok) : (complain(ended.error()), int(Exit::failed));
}

int execute(const DevArguments& options) {
  auto socket = find_socket(options.name == "dev" ? "" : options.directory + "/" + options.name + "/lab.sock", "YADO_LAB", "lab.sock");
  if (!socket) return complain(socket.error()), Exit::no_control;
  Client client(*socket);
  const nlohmann::json body{{"host", options.host}, {"command", after_dashes(options.command)}, {"directory", fs::current_path().native()}};
  int status = Exit::failed;
  auto done = client.follow("POST", "/v1/exec", api::dump(body), std::nullopt, [&](const nlohmann::json& line) {
    if (line.contains("output")) {
      fmt::print("{}", line.value("output", ""));
      std::fflush(stdout);
    }
    status = line.value("status", status);
    return true;
  });
  return done ? status : complain(client, done.error());
}

}  // namespace

void add_dev(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<DevArguments>();
  CLI::App* command = app.add_subcommand(
      "dev", "Start a cluster on this machine: hosts are network namespaces, failures are real. Needs root. Ends with Ctrl-C");
  command->add_option("--name", options->name, "Name of the lab; labs of different names run side by side")->capture_default_str();
  command->add_option("--hosts", options->hosts, "How many hosts")->check(CLI::Range(1, 200))->capture_default_str();
  command->add_option("--listen", options->listen, "Where the gate is reached on this machine; port 0: any free one")
      ->type_name("ADDRESS:PORT")
      ->capture_default_str();
  command->add_option("--dir", options->directory, "Where the lab's directory is made, and removed at the end")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--disk", options->disk, "Size of a disk (tmpfs) of its own for every host, which the disk-full drill needs")
      ->transform(CLI::AsSizeValue(false))
      ->type_name("SIZE");
  command->add_option("--link", options->link, "Bits per second of every host's link, each way; 0: as fast as it goes");
  command->add_option("--criu", options->criu, "CRIU; without it $YADO_CRIU, /opt/yado/criu/bin/criu or the system's; \"none\": no checkpoints")
      ->type_name("PATH");
  add_log_level(*command, options->log);
  command->require_subcommand(0, 1);

  CLI::App* exec = command->add_subcommand(
      "exec", "Run a program on a host of a running lab, or in its front (where databases and clients go); exits with its status");
  exec->add_option("host", options->host, "A host, or front")->required()->type_name("HOST");
  exec->add_option("command", options->command, "Program and arguments, after --")->required()->type_name("COMMAND");
  exec->add_option("--name", options->name, "Name of the lab, when several run")->capture_default_str();
  exec->positionals_at_end();

  on_chosen(*command, outcome, [options, exec] { return exec->parsed() ? execute(*options) : serve(*options); });
}

}  // namespace yado::cli
