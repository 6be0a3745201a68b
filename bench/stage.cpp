#include "stage.hpp"

#include <cstdlib>
#include <sstream>

#include <nlohmann/json.hpp>
#include <unistd.h>

#include "api/answer.hpp"
#include "api/json.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "spec/spec.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"

namespace yado::bench {
using nlohmann::json;

namespace {

/// A demo that hangs ends with a reason; nothing is decided by it.
constexpr auto patience = 60s;
constexpr auto run_directory = "/run/yado";

Result<Endpoint> endpoint_of(const std::string& text) {
  const auto colon = text.rfind(':');
  if (colon == std::string::npos) return fail(Errc::corrupt, "\"{}\" is not ADDRESS:PORT", text);
  return Endpoint{text.substr(0, colon), static_cast<std::uint16_t>(std::atoi(text.c_str() + colon + 1))};
}

}  // namespace

Result<std::unique_ptr<Stage>> Stage::start(const StageOptions& options, const std::function<void(std::string)>& said,
                                            const std::function<void(const Program&)>& lab_started) {
  if (!std::getenv("YADO_ROOTS")) return fail(Errc::invalid_argument, "YADO_ROOTS is not set: start the demo by ./run demo");
  const std::string name = fmt::format("demo-{}", ::getpid());
  const std::string directory = fmt::format("{}/{}", run_directory, name);
  std::vector<std::string> arguments{options.yado.native(), "dev", "--name", name, "--listen", "127.0.0.1:0", "--dir", run_directory};
  YADO_ASSIGN(auto lab, Program::start(std::move(arguments)), "lab");
  lab_started(*lab);
  // Greets when every host has joined.
  YADO_TRY(lab->wait_for_line("lab " + name), "lab");
  std::unique_ptr<Stage> stage(new Stage(std::move(lab), directory));
  YADO_ASSIGN(const json seen, stage->lab_api_.call("GET", "/v1/lab"), "lab");
  YADO_ASSIGN(stage->gate_, endpoint_of(seen.value("gate", "")), "lab");
  stage->front_ = seen.value("front", "");
  std::string hosts;
  for (const json& host : seen["hosts"]) hosts += fmt::format(" {} ({})", host.value("host", ""), host.value("address", ""));
  said(fmt::format("lab {}:{}, control and gate in its front ({})", name, hosts, stage->front_));
  YADO_TRY(stage->start_database(options, directory), "database");
  said(fmt::format("PostgreSQL answers on {}:5432", stage->front_));
  YADO_TRY(stage->read_spec(options), "spec");
  return stage;
}

Status Stage::start_database(const StageOptions& options, const std::string& directory) {
  YADO_ASSIGN(database_, Program::start({options.yado.native(), "dev", "exec", "--name", directory.substr(directory.rfind('/') + 1),
                                         "front", "--", (options.repository / "tools/database").native(),
                                         directory + "/database", front_}),
              "start");
  YADO_TRY(database_->wait_for_line("ready "), "start");
  return {};
}

Status Stage::read_spec(const StageOptions& options) {
  const std::string file = (options.repository / "examples/django/django.toml").native();
  YADO_ASSIGN(const std::string text, os::read_text(file), "read");
  spec::Environment environment;
  environment.emplace("YADO_ROOTS", std::getenv("YADO_ROOTS"));
  environment.emplace("YADO_DATABASE_HOST", front_);
  YADO_ASSIGN(spec_, spec::parse(text, file, environment), "parse");
  // A demo relocates more often than a service should.
  spec_.policy.relocations = 1000;
  return {};
}

Status Stage::deploy(StandbyLevel level) {
  spec_.policy.standby = level;
  const json body = spec_;
  YADO_TRY(control_.call("PUT", fmt::format("/v1/workloads/{}", spec_.name), api::dump(body)), "deploy");
  return {};
}

Result<Owner> Stage::owner() {
  YADO_ASSIGN(const json site, control_.call("GET", fmt::format("/v1/workloads/{}", spec_.name)), "owner");
  const json& owner = site["owner"];
  if (!owner.is_object()) return fail(Errc::conflict, "{} is {}", spec_.name, site.value("state", ""));
  return Owner{owner.value("host", ""), owner.value("instance", ""), site.value("epoch", std::uint64_t{0})};
}

Result<bool> Stage::complete(StandbyLevel level) {
  YADO_ASSIGN(const json site, control_.call("GET", fmt::format("/v1/workloads/{}", spec_.name)), "workload");
  YADO_ASSIGN(const json all, control_.call("GET", "/v1/hosts"), "hosts");
  const json &owner = site["owner"], &image = site["image"], &standby = site["standby"];
  missing_.clear();
  for (const json& host : all["hosts"])
    if (!host.value("alive", false)) missing_ += fmt::format(" {} does not answer;", host.value("host", ""));
  if (!owner.is_object()) missing_ += " nobody owns it;";
  const std::size_t holders = image.is_object() && image.value("current", false) ? image["holders"].size() : 0;
  if (level != StandbyLevel::cold && holders < 2) missing_ += fmt::format(" the image is on {} hosts;", holders);
  const bool frozen = standby.is_object() && standby.value("state", "") == "frozen" && owner.is_object() &&
                      standby.value("host", "") != owner.value("host", "");
  if (level == StandbyLevel::frozen && !frozen) missing_ += " no frozen standby;";
  // What the fault or the last variant left behind would cost processor time in the next measurement.
  for (const json& host : all["hosts"])
    for (const json& instance : host["instances"]) {
      const std::string id = instance.value("id", "");
      const bool wanted = (owner.is_object() && id == owner.value("instance", "")) || (frozen && id == standby.value("instance", ""));
      if (!wanted) missing_ += fmt::format(" {} is still on {};", id, host.value("host", ""));
    }
  return missing_.empty();
}

/// Looks again at every line of control's event stream; that has a keep-alive twice a second, for what changes without
/// an event.
Status Stage::wait_complete(StandbyLevel level) {
  const Instant give_up = os::now() + patience;
  boost::asio::io_context io;
  wire::Client events = wire::Client::unix_socket(io, control_.socket());
  wire::Request request;
  request.target = fmt::format("/v1/events?follow=1&since={}", newest_event());
  Result<bool> reached = false;
  auto look = [&](std::string_view) -> Status {
    reached = complete(level);
    if (!reached || *reached) return fail(Errc::canceled, "seen enough");
    if (os::now() > give_up) reached = fail(Errc::timed_out, "redundancy is not complete after {} s:{}", patience.count(), missing_);
    return reached ? Status{} : fail(Errc::canceled, "seen enough");
  };
  if (Status first = look({}); first) {
    auto ended = wire::run(io, events.stream(std::move(request), 10s, 10s, look));
    if (reached && !*reached) return fail(Errc::unavailable, "control's event stream ended: {}", ended ? "no reason" : ended.error().message);
  }
  if (!reached) return std::unexpected(reached.error());
  return {};
}

Result<Instant> Stage::inject(const std::string& fault, const std::string& host) {
  json note{{"fault", fault}, {"host", host}, {"workload", spec_.name.str()}, {"phase", "begin"}};
  YADO_TRY(control_.call("POST", "/v1/drills", note.dump()), "note");
  json body{{"kind", fault}, {"host", host}};
  if (fault == "process") body["workload"] = spec_.name.str();
  YADO_ASSIGN(const json injected, lab_api_.call("POST", "/v1/faults", body.dump()), fault);
  return Instant(nanoseconds(injected.value("at_ns", std::int64_t{0})));
}

Status Stage::heal(const std::string& host) {
  YADO_TRY(lab_api_.call("POST", "/v1/heal", json{{"host", host}}.dump()), "heal " + host);
  return {};
}

Result<std::vector<drill::Moment>> Stage::moments_since(std::uint64_t event) {
  std::vector<drill::Moment> moments;
  YADO_TRY(control_.follow(fmt::format("/v1/events?limit=100000&since={}", event),
                           [&](const json& line) {
                             if (auto moment = drill::moment_of(line)) moments.push_back(std::move(*moment));
                             return true;
                           }),
           "events");
  return moments;
}

std::string Stage::last_events() {
  std::string text;
  (void)control_.follow("/v1/events?limit=20", [&](const json& line) {
    text += cli::describe_event(line) + "\n";
    return true;
  });
  return text;
}

Result<std::map<std::string, int>> Stage::entries(const std::string& prefix) {
  const std::string query = fmt::format("select body, count(*) from entries where body like '{}%' group by body", prefix);
  const json body{{"host", "front"}, {"command", {"psql", "-X", "-A", "-t", "-F", " ", "-h", front_, "-U", "yado", "-d", "yado", "-c", query}}};
  std::string output;
  int status = 1;
  YADO_TRY(lab_api_.follow("POST", "/v1/exec", body.dump(), patience,
                           [&](const json& line) {
                             output += line.value("output", "");
                             status = line.value("status", status);
                             return true;
                           }),
           "psql");
  if (status != 0) return fail(Errc::application, "psql: exit status {}: {}", status, output);
  std::map<std::string, int> counts;
  std::istringstream words(output);
  std::string entry;
  for (int count; words >> entry >> count;) counts[entry] = count;
  return counts;
}

}  // namespace yado::bench
