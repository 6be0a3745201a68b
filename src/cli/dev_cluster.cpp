#include "cli/dev_cluster.hpp"

#include <csignal>

#include <algorithm>
#include <array>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "api/json.hpp"
#include "base/log.hpp"
#include "cli/role.hpp"
#include "control/control.hpp"
#include "os/cgroup.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "wire/client.hpp"
#include "wire/listen.hpp"

namespace yado::cli {
namespace asio = boost::asio;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// As an init system waits before it starts a service again.
constexpr auto restart_pause = 1s;
constexpr int gate_descriptor = 3, ready_descriptor = 4;
constexpr auto as_result = asio::as_tuple(asio::use_awaitable);

std::string last_lines(const fs::path& file) {
  auto text = os::read_text(file);
  if (!text) return "";
  while (text->ends_with('\n')) text->pop_back();
  std::size_t begin = text->size();
  for (int lines = 0; lines < 3 && begin != std::string::npos && begin > 0; ++lines) begin = text->rfind('\n', begin - 1);
  return begin == std::string::npos || begin == 0 ? *text : text->substr(begin + 1);
}

}  // namespace

struct DevCluster::Role {
  std::string name;
  HostId host;
  std::vector<std::string> arguments;
  std::vector<std::pair<int, int>> descriptors;
  std::optional<lab::HostProcess> process;
  std::unique_ptr<asio::posix::stream_descriptor> watch;
  std::unique_ptr<asio::steady_timer> pause;
  int generation = 0;
  bool wanted = false;  ///< to be started again when it ends
};

struct DevCluster::Wake {
  explicit Wake(asio::io_context& io) : timer(io, asio::steady_timer::time_point::max()) {}
  asio::steady_timer timer;
  bool stopped = false;
};

// ---- making --------------------------------------------------------------------------------------------------------

DevCluster::DevCluster(asio::io_context& io, DevOptions options)
    : io_(io), options_(std::move(options)), wake_(std::make_unique<Wake>(io)) {}

DevCluster::~DevCluster() {
  wake_->stopped = true;
  roles_.clear();  // watchers before what they watch
}

Result<std::unique_ptr<DevCluster>> DevCluster::create(asio::io_context& io, DevOptions options) {
  std::unique_ptr<DevCluster> made(new DevCluster(io, std::move(options)));
  DevCluster& self = *made;
  std::error_code error;
  self.program_ = fs::read_symlink("/proc/self/exe", error).native();
  if (error) return fail_errno(error.value(), "the path of this program");
  // Before anything else is made: the likeliest mistake is a port in use.
  YADO_ASSIGN(self.gate_socket_, wire::make_tcp_listener(self.options_.listen.address, self.options_.listen.port), "--listen");
  YADO_ASSIGN(self.gate_port_, wire::check_listener(self.gate_socket_, true), "--listen");
  YADO_ASSIGN(lab::Lab lab, lab::Lab::create(self.options_.lab), "lab");
  self.lab_ = std::make_unique<lab::Lab>(std::move(lab));
  self.directory_ = self.options_.lab.run_directory / self.options_.lab.name;
  fs::create_directories(self.directory_ / "log", error);
  fs::create_directories(self.directory_ / "front", error);
  YADO_TRY(self.make_identities(), "certificates");

  const std::string control = fmt::format("{}:{}", self.lab_->address(lab::Lab::front()).str(), control_port);
  const auto identity = [&](const std::string& role) { return (self.directory_ / "identity" / role).native(); };
  self.add_role("control", lab::Lab::front(),
                {"control", "--state", (self.directory_ / "front/control").native(), "--socket", self.control_socket(),
                 "--listen", control});
  Role& gate = self.add_role("gate", lab::Lab::front(),
                             {"gate", "--inherited", std::to_string(gate_descriptor), "--listen",
                              self.lab_->address(lab::Lab::front()).str() + ":80", "--control", control, "--identity",
                              identity("gate"), "--table", (self.directory_ / "front/routes.json").native(), "--admin",
                              (self.directory_ / "gate.sock").native()});
  gate.descriptors = {{self.gate_socket_.get(), gate_descriptor}};
  for (const HostId& host : self.lab_->hosts()) {
    std::vector<std::string> arguments{"agent", "--host", host.str(), "--address", self.lab_->address(host).str(),
                                       "--control", control, "--identity", identity(host.str()), "--state",
                                       self.lab_->state_directory(host).native(), "--cgroup", self.lab_->cgroup(host)};
    if (!self.options_.criu.empty()) arguments.insert(arguments.end(), {"--criu", self.options_.criu.native()});
    self.add_role(host.str(), host, std::move(arguments));
  }
  return made;
}

Status DevCluster::make_identities() {
  const fs::path state = directory_ / "front/control";
  YADO_TRY(control::issue(state, "gate:front", directory_ / "identity/gate"), "gate");
  for (const HostId& host : lab_->hosts())
    YADO_TRY(control::issue(state, "agent:" + host.str(), directory_ / "identity" / host.str()), host.str());
  return {};
}

DevCluster::Role& DevCluster::add_role(std::string name, HostId host, std::vector<std::string> arguments) {
  auto role = std::make_unique<Role>();
  role->name = name;
  role->host = std::move(host);
  role->arguments = std::move(arguments);
  role->arguments.insert(role->arguments.begin(), program_);
  role->arguments.insert(role->arguments.end(), {"--log", options_.log});
  return *(roles_[std::move(name)] = std::move(role));
}

// ---- starting and ending roles -------------------------------------------------------------------------------------

Status DevCluster::start_role(Role& role) {
  lab::SpawnOptions options;
  options.arguments = role.arguments;
  options.environment = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"};
  options.log_file = (directory_ / "log" / (role.name + ".log")).native();
  options.descriptors = role.descriptors;
  YADO_ASSIGN(lab::HostProcess process, lab_->spawn(role.host, options), role.name);
  role.process.emplace(std::move(process));
  role.wanted = true;
  const int watched = ::fcntl(role.process->fd(), F_DUPFD_CLOEXEC, 0);
  if (watched < 0) return fail_errno("watch " + role.name);
  role.watch = std::make_unique<asio::posix::stream_descriptor>(io_, watched);
  role.watch->async_wait(asio::posix::stream_descriptor::wait_read,
                         [this, &role, generation = ++role.generation](const boost::system::error_code& error) {
                           if (!error) ended(role, generation);
                         });
  return {};
}

/// Killed on purpose, with everything that it could still do; returns when it is gone.
Status DevCluster::stop_role(Role& role) {
  role.wanted = false;
  role.pause.reset();
  role.watch.reset();
  ++role.generation;
  if (!role.process) return {};
  (void)role.process->send(SIGKILL);
  YADO_ASSIGN(auto gone, role.process->wait(10s), role.name);
  role.process.reset();
  if (!gone) return fail(Errc::timed_out, "{} does not die", role.name);
  return {};
}

void DevCluster::ended(Role& role, int generation) {
  if (generation != role.generation) return;
  role.watch.reset();
  auto status = role.process->wait(1s);
  role.process.reset();
  const std::string how = status && *status ? (*status)->text() : "ended";
  const fs::path log = directory_ / "log" / (role.name + ".log");
  if (joined_.size() < lab_->hosts().size() && trouble_) {
    trouble_ = fail(Errc::unavailable, "{}: {}; its last words in {}:\n{}", role.name, how, log.native(), last_lines(log));
    wake_->timer.cancel();
    return;
  }
  if (!role.wanted || !lab_->alive(role.host)) return;
  log::warn("{}: {}; it is started again", role.name, how);
  role.pause = std::make_unique<asio::steady_timer>(io_, restart_pause);
  role.pause->async_wait([this, &role](const boost::system::error_code& error) {
    if (error || !role.wanted || !lab_->alive(role.host)) return;
    if (Status started = start_role(role); !started) log::error("{}: {}", role.name, started.error().text());
  });
}

asio::awaitable<Status> DevCluster::start_control() {
  auto pipe = os::make_pipe();
  if (!pipe) co_return std::unexpected(pipe.error());
  Role& control = *roles_.at("control");
  // This once: when it dies by itself it is started again without anybody waiting.
  const std::vector<std::string> lasting = control.arguments;
  control.arguments.insert(control.arguments.end(), {"--ready-fd", std::to_string(ready_descriptor)});
  control.descriptors = {{pipe->write.get(), ready_descriptor}};
  Status started = start_role(control);
  control.descriptors.clear();
  control.arguments = lasting;
  if (!started) co_return started;
  pipe->write.reset();
  asio::posix::stream_descriptor ready(io_, pipe->read.release());
  co_await ready.async_wait(asio::posix::stream_descriptor::wait_read, as_result);
  co_return trouble_;
}

asio::awaitable<Status> DevCluster::start(std::function<void(const json&)> seen) {
  Status begun = co_await start_control();
  if (!begun) co_return begun;
  asio::co_spawn(io_, follow(std::move(seen)), asio::detached);
  for (auto& [name, role] : roles_)
    if (name != "control")
      if (Status started = start_role(*role); !started) co_return started;
  while (trouble_ && joined_.size() < lab_->hosts().size()) co_await wake_->timer.async_wait(as_result);
  co_return trouble_;
}

asio::awaitable<void> DevCluster::follow(std::function<void(const json&)> seen) {
  constexpr auto quiet_limit = 5s;  // control says something every half second
  std::uint64_t since = 0;
  while (!wake_->stopped) {
    wire::Client control = wire::Client::unix_socket(io_, control_socket());
    wire::Request request;
    request.target = fmt::format("/v1/events?follow=1&since={}", since);
    std::string text;
    auto sink = [&](std::string_view piece) -> Status {
      text += piece;
      for (std::size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
        if (end == 0) continue;
        auto event = api::parse_json(std::string_view(text).substr(0, end));
        if (!event) return std::unexpected(event.error());
        since = event->value("seq", since);
        if (event->value("kind", "") == "host-joined") joined_.insert(event->value("host", "")), wake_->timer.cancel();
        seen(*event);
      }
      return {};
    };
    auto ended = co_await control.stream(std::move(request), quiet_limit, quiet_limit, sink);
    if (wake_->stopped) co_return;
    // Control was killed, by a drill or by itself: it comes back when somebody starts it.
    asio::steady_timer pause(io_, restart_pause);
    co_await pause.async_wait(as_result);
  }
}

// ---- faults --------------------------------------------------------------------------------------------------------

bool DevCluster::has_host(const HostId& host) const {
  return host == lab::Lab::front() || std::ranges::find(lab_->hosts(), host) != lab_->hosts().end();
}

Result<Instant> DevCluster::inject(const std::string& kind, const HostId& host, const std::string& instance) {
  const auto in_force = [&](Result<Instant> at) {
    if (at) faults_[host].insert(kind);
    return at;
  };
  if (kind == "control") {
    const Instant at = os::now();
    YADO_TRY(stop_role(*roles_.at("control")), "control");
    faults_[lab::Lab::front()].insert(kind);
    return at;
  }
  if (!has_host(host) || host.empty()) return fail(Errc::not_found, "lab {} has no host \"{}\"", lab_->name(), host);
  if (kind == "cut") return in_force(lab_->cut(host));
  if (kind == "one-way-in") return in_force(lab_->one_way_in(host));
  if (kind == "one-way-out") return in_force(lab_->one_way_out(host));
  if (kind == "lossy") return in_force(lab_->lossy(host));
  if (kind == "freeze") return in_force(lab_->freeze(host));
  if (kind == "disk-full") return in_force(lab_->fill_disk(host));
  if (host == lab::Lab::front()) return fail(Errc::invalid_argument, "{} is for hosts, not for the front", kind);
  if (kind == "host-silent") {
    Role& agent = *roles_.at(host.str());
    if (!lab_->alive(host)) return fail(Errc::conflict, "{} is dead already", host);
    agent.wanted = false;  // dies with its host
    agent.pause.reset();
    return in_force(lab_->host_silent(host));
  }
  if (kind == "agent") {
    const Instant at = os::now();
    YADO_TRY(stop_role(*roles_.at(host.str())), "agent");
    faults_[host].insert(kind);
    return at;
  }
  if (kind == "process") {
    YADO_ASSIGN(const os::Cgroup group, os::Cgroup::open(lab_->cgroup(host) + "/" + instance), "process");
    const Instant at = os::now();
    YADO_TRY(group.kill_all(), "process");
    return at;
  }
  return fail(Errc::invalid_argument,
              "\"{}\" is no fault: host-silent, process, cut, one-way-in, one-way-out, lossy, freeze, control, agent, disk-full", kind);
}

asio::awaitable<Status> DevCluster::heal(HostId host) {
  if (!has_host(host)) co_return fail(Errc::not_found, "lab {} has no host \"{}\"", lab_->name(), host);
  std::set<std::string> present;
  if (auto found = faults_.find(host); found != faults_.end()) present = std::move(found->second);
  faults_.erase(host);
  Status done;
  if (!lab_->alive(host)) {
    done = lab_->boot(host);
    if (done) done = start_role(*roles_.at(host.str()));
    co_return done;
  }
  if (present.contains("freeze")) {
    if (auto thawed = lab_->thaw(host); !thawed) done = std::unexpected(thawed.error());
  }
  if (done && present.contains("disk-full")) {
    if (auto freed = lab_->free_disk(host); !freed) done = std::unexpected(freed.error());
  }
  if (done && std::ranges::any_of(std::array{"cut", "one-way-in", "one-way-out", "lossy"}, [&](const char* kind) { return present.contains(kind); })) {
    if (auto linked = lab_->heal(host); !linked) done = std::unexpected(linked.error());
  }
  if (done && present.contains("agent")) done = start_role(*roles_.at(host.str()));
  if (done && present.contains("control")) done = co_await start_control();
  co_return done;
}

asio::awaitable<Status> DevCluster::heal_all() {
  std::vector<HostId> all = lab_->hosts();
  all.push_back(lab::Lab::front());
  Status done;
  for (const HostId& host : all)
    if (Status one = co_await heal(host); !one && done) done = context(one.error(), host.str());
  co_return done;
}

json DevCluster::describe() const {
  json hosts = json::array();
  for (const HostId& host : lab_->hosts()) {
    const auto faults = faults_.find(host);
    hosts.push_back(json{{"host", host.str()},
                         {"address", lab_->address(host).str()},
                         {"alive", lab_->alive(host)},
                         {"faults", faults == faults_.end() ? std::set<std::string>() : faults->second}});
  }
  return json{{"name", lab_->name()},
              {"hosts", hosts},
              {"front", lab_->address(lab::Lab::front()).str()},
              {"gate", options_.listen.address + ":" + std::to_string(gate_port_)},
              {"control", control_socket()}};
}

}  // namespace yado::cli
