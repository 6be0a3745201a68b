// What agents and gates ask of control (mutual TLS; Shell::allowed has seen who they are).

#include <nlohmann/json.hpp>

#include "api/calls.hpp"
#include "api/fields.hpp"
#include "control/shell.hpp"
#include "os/clock.hpp"

namespace yado {
// In api/calls.cpp; Fields' templates look for it here.
void read_json(const nlohmann::json& json, const std::string& path, Status& status, Event& value);
}  // namespace yado

namespace yado::control {

using api::Fields;

struct ExitedMessage {
  WorkloadId workload;
  InstanceId instance;
  std::string how;
};
static void read_json(const nlohmann::json& json, const std::string& path, Status& status, ExitedMessage& value) {
  Fields(json, path, status).required("workload", value.workload).required("instance", value.instance).optional("status", value.how);
}

struct RenewMessage {
  WorkloadId workload;
  InstanceId instance;
  Epoch epoch;
};
static void read_json(const nlohmann::json& json, const std::string& path, Status& status, RenewMessage& value) {
  Fields(json, path, status)
      .required("workload", value.workload)
      .required("instance", value.instance)
      .required("epoch", value.epoch);
}

struct AskMessage {
  Epoch observed;
  Evidence evidence = Evidence::asleep;
  HostId suspect;
};
static void read_json(const nlohmann::json& json, const std::string& path, Status& status, AskMessage& value) {
  Fields(json, path, status)
      .required("observed", value.observed)
      .required("evidence", value.evidence)
      .optional("suspect", value.suspect);
}

struct IdleMessage {
  Epoch observed;
  bool idle = true;
};
static void read_json(const nlohmann::json& json, const std::string& path, Status& status, IdleMessage& value) {
  Fields(json, path, status).required("observed", value.observed).optional("idle", value.idle);
}

// ---- agents --------------------------------------------------------------------------------------------------------

Result<nlohmann::json> Shell::heartbeat(const HostId& host, const wire::Request& request) {
  YADO_ASSIGN(const HostReport report, api::parse<HostReport>(request.body), "heart-beat");
  if (report.host != host)
    return fail(Errc::invalid_argument, "host: the heart-beat of {} says \"{}\"", host, report.host);
  HeartbeatReply reply = core_.heartbeat(report, os::now());
  settle();
  // While the store cannot be written nobody is told to end anything: it could be by a decision that is lost yet.
  if (held_) reply = HeartbeatReply{};
  Json answer{{"retire", reply.retire}, {"drop", reply.drop}, {"heartbeat_ms", core_.settings().heartbeat.count()}};
  if (held_) return answer;
  answer["expected"] = Json::array();
  for (const InstanceId& instance : reply.expected) answer["expected"].push_back(instance.str());
  return answer;
}

Result<nlohmann::json> Shell::exited(const HostId& host, const wire::Request& request) {
  YADO_ASSIGN(const ExitedMessage message, api::parse<ExitedMessage>(request.body), "exited");
  core_.instance_exited(host, message.instance, message.workload, os::now(), message.how);
  settle();
  return Json::object();
}

Result<nlohmann::json> Shell::renew(const wire::Request& request) {
  YADO_ASSIGN(const RenewMessage message, api::parse<RenewMessage>(request.body), "renew");
  YADO_ASSIGN(const milliseconds ttl, core_.renew(message.workload, message.instance, message.epoch, os::now()), "lease");
  return Json{{"ttl_ms", ttl.count()}};
}

// ---- gates ---------------------------------------------------------------------------------------------------------

boost::asio::awaitable<Result<nlohmann::json>> Shell::ask(const WorkloadId& id, const wire::Request& request,
                                                          wire::Responder& responder) {
  auto message = api::parse<AskMessage>(request.body);
  if (!message) co_return std::unexpected(message.error());
  if (Status can = writable(); !can) co_return std::unexpected(can.error());
  auto [number, question] = new_question();
  core_.ask(number, id, message->observed, message->evidence, message->suspect, os::now());
  settle();
  auto answer = co_await answer_to(number, question, responder);
  if (!answer) co_return std::unexpected(answer.error());
  if (!answer->route) co_return std::unexpected(answer->route.error());
  co_return Json{{"route", *answer->route}, {"fenced", answer->fenced}};
}

Result<nlohmann::json> Shell::idle(const WorkloadId& id, const wire::Request& request) {
  YADO_ASSIGN(const IdleMessage message, api::parse<IdleMessage>(request.body), "idle");
  YADO_TRY(writable(), "idle");
  core_.idle(request.peer, id, message.observed, message.idle, os::now());
  settle();
  return Json::object();
}

void Shell::tell_gates() {
  core_.gates({connected_gates_.begin(), connected_gates_.end()});
  settle();
}

boost::asio::awaitable<void> Shell::follow_routes(const wire::Request& request, wire::Responder& responder) {
  struct Connected {
    Connected(std::shared_ptr<Shell> of, const std::string& peer)
        : shell(std::move(of)), mine(shell->connected_gates_.insert(peer)) {
      shell->tell_gates();
    }
    ~Connected() {
      shell->connected_gates_.erase(mine);
      if (!shell->stopped_) shell->tell_gates();
    }
    Connected(const Connected&) = delete;
    Connected& operator=(const Connected&) = delete;
    std::shared_ptr<Shell> shell;
    std::multiset<std::string>::iterator mine;
  };
  const Connected connected(shared_from_this(), request.peer);
  // Gates take half a second of silence as a sign that control is gone (docs/api.md).
  constexpr auto keep_alive = 500ms;
  wire::Headers headers;
  headers.emplace_back("content-type", "application/x-ndjson");
  Status sent = co_await responder.start(200, std::move(headers));
  std::uint64_t told = 0;
  while (sent && !responder.closed() && !stopped_) {
    std::string line = "\n";
    if (told != routes_.version) {
      told = routes_.version;
      line = api::dump(Json(routes_)) + "\n";
    }
    sent = co_await responder.write(line);
    if (sent && told == routes_.version) co_await routes_changed_.wait(keep_alive);
  }
}

// ---- events of others ----------------------------------------------------------------------------------------------

Result<nlohmann::json> Shell::event(const wire::Request& request) {
  YADO_ASSIGN(const Json json, api::parse_json(request.body), "event");
  YADO_ASSIGN(Event seen, api::from_json_value<Event>(json), "event");
  // When its sender saw it, if it says so: CLOCK_BOOTTIME, the same for all roles of one machine.
  std::int64_t at_ns = 0;
  Status status;
  Fields(json, "", status).optional("at_ns", at_ns);
  YADO_TRY(status, "event");
  if (seen.host.empty() && request.peer.starts_with("agent:")) seen.host = HostId(request.peer.substr(6));
  seen.fields.try_emplace("by", request.peer);
  record(seen, at_ns > 0 ? Instant(nanoseconds(at_ns)) : os::now());
  return Json::object();
}

}  // namespace yado::control
