// yado control: the role that decides; and the certificates of the others.

#include <fcntl.h>

#include "control/control.hpp"

#include "cli/command.hpp"
#include "cli/role.hpp"
#include "os/fd.hpp"

namespace yado::cli {
namespace {

struct ControlOptions {
  std::string state = "/var/lib/yado/control";
  std::string socket = "/run/yado/control.sock";
  std::string listen = "0.0.0.0";
  std::string log = "info";
  std::int64_t heartbeat_ms = 200;
  int ready = -1;
  std::string common_name, directory;
};

int serve(const ControlOptions& options) {
  start_log("control", options.log);
  auto listen = parse_endpoint(options.listen, control_port);
  if (!listen) return complain(listen.error());
  // Before anything else is opened: a number that nobody passed would be that of a file of ours a moment later.
  if (options.ready >= 0 && ::fcntl(options.ready, F_SETFD, FD_CLOEXEC) != 0)
    return complain(Error{Errc::invalid_argument, fmt::format("--ready-fd: descriptor {} is not open", options.ready)});
  boost::asio::io_context io(1);
  control::ControlOptions made;
  made.state = options.state;
  made.socket = options.socket;
  made.address = listen->address;
  made.port = listen->port;
  made.settings.heartbeat = milliseconds(options.heartbeat_ms);
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(options.socket).parent_path(), ignored);
  auto control = control::Control::start(io, made);
  if (!control) return complain(control.error()), Exit::failed;
  // Whoever started it waits for the end of file: of a control that failed, the same comes without it answering.
  os::Fd(options.ready).reset();
  serve_until_signal(io, [&] { control->stop(); });
  return Exit::ok;
}

int issue(const ControlOptions& options) {
  const std::string role = options.common_name.substr(0, options.common_name.find(':'));
  const bool known = role == "agent" || role == "gate" || role == "control";
  if (!known || !valid_name(std::string_view(options.common_name).substr(std::min(role.size() + 1, options.common_name.size()))))
    return complain(Error{Errc::invalid_argument, fmt::format("\"{}\" is not agent:NAME, gate:NAME or control:NAME",
                                                              options.common_name)});
  if (Status done = control::issue(options.state, options.common_name, options.directory); !done)
    return complain(done.error()), Exit::failed;
  fmt::print("{}: cert.pem, key.pem and ca.pem for {}\n", options.directory, options.common_name);
  return Exit::ok;
}

}  // namespace

void add_control(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<ControlOptions>();
  CLI::App* command = app.add_subcommand("control", "Role: decides, keeps the state, serves the API. Ends with SIGTERM");
  command->add_option("--state", options->state, "Directory of the database, the authority and control's own key")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--socket", options->socket, "Unix socket for people (mode 0600)")
      ->type_name("PATH")
      ->capture_default_str();
  command->add_option("--listen", options->listen, "Where agents and gates connect, with mutual TLS (port 7400 if not given)")
      ->type_name("ADDRESS[:PORT]")
      ->capture_default_str();
  command->add_option("--heartbeat", options->heartbeat_ms, "Milliseconds between the reports that agents are told to send")
      ->check(CLI::Range(20, 60'000))
      ->capture_default_str();
  command->add_option("--ready-fd", options->ready, "A descriptor that is closed as soon as control serves")->type_name("FD");
  add_log_level(*command, options->log);
  command->require_subcommand(0, 1);

  CLI::App* issuing = command->add_subcommand(
      "issue", "Write the certificate and key of another role; control need not run. Copy the directory to its machine");
  issuing->add_option("name", options->common_name, "agent:HOST, gate:NAME or control:NAME")->required()->type_name("ROLE:NAME");
  issuing->add_option("directory", options->directory, "Where cert.pem, key.pem and ca.pem go")->required()->type_name("DIR");
  issuing->add_option("--state", options->state, "Control's state directory")->type_name("DIR")->capture_default_str();

  on_chosen(*command, outcome, [options, issuing] { return issuing->parsed() ? issue(*options) : serve(*options); });
}

}  // namespace yado::cli
