// The agent's HTTP API (docs/api.md, "Agent").

#include <charconv>
#include <nlohmann/json.hpp>

#include "agent/http.hpp"
#include "agent/impl.hpp"
#include "api/fields.hpp"
#include "base/log.hpp"
#include "transfer/target.hpp"
#include "transfer/transfer.hpp"

namespace yado::agent {

namespace asio = boost::asio;
using nlohmann::json;

namespace {

int status_of(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return 400;
    case Errc::permission:
      return 403;
    case Errc::not_found:
      return 404;
    case Errc::already_exists:
    case Errc::stale_epoch:
    case Errc::not_owner:
    case Errc::conflict:
      return 409;
    case Errc::rate_limited:
      return 429;
    case Errc::unsupported:
      return 501;
    case Errc::unavailable:
    case Errc::canceled:
      return 503;
    case Errc::no_space:
      return 507;
    default:
      return 500;
  }
}

std::vector<std::string> split(std::string_view path) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    if (end > at) parts.emplace_back(path.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

struct ExecRequest {
  std::vector<std::string> command;
  std::optional<milliseconds> timeout;
};
void read_json(const json& value, const std::string& path, Status& status, ExecRequest& into) {
  api::Fields(value, path, status).required("command", into.command).optional("timeout_ms", into.timeout);
}

}  // namespace

wire::Response reply(int status, const json& body) {
  return {.status = status, .headers = {{"content-type", "application/json"}}, .body = api::dump(body)};
}
wire::Response refusal(const Error& error) { return reply(status_of(error.code), json{{"error", error}}); }

asio::awaitable<void> Agent::Impl::serve(std::shared_ptr<Impl> self, const wire::Request& request,
                                         wire::Responder& responder) {
  if (!self) co_return;
  if (transfer::is_transfer(request)) {
    // A copy is made of files of one and the same manifest.
    if (const auto target = transfer::parse_target(request.target); target && request.peer.starts_with("agent:")) {
      const ImageId wanted = target->image;
      co_await self->images->give_way(wanted);
    }
    co_await transfer::serve(self->images->store(), self->workers.executor(), request, responder);
    co_return;
  }
  wire::Response made = co_await self->answer(request);
  (void)co_await responder.respond(std::move(made));
}

asio::awaitable<wire::Response> Agent::Impl::answer(const wire::Request& request) {
  const std::string path = request.target.substr(0, request.target.find('?'));
  const std::vector<std::string> parts = split(path);
  const auto wrong_method = [&](const char* wanted) {
    return refusal(Error{Errc::invalid_argument, fmt::format("{} wants {}, not {}", path, wanted, request.method)});
  };
  if (parts.size() == 2 && parts[0] == "v1" && parts[1] == "version")
    co_return reply(
        200,
        json{{"name", "yado"}, {"version", YADO_VERSION}, {"api", 1}, {"role", "agent"}, {"host", config.host.str()}});
  if (parts.size() == 3 && parts[0] == "v1" && parts[1] == "calls") {
    if (request.method != "POST") co_return wrong_method("POST");
    co_return co_await answer_call(request, parts[2]);
  }
  if (parts.size() == 4 && parts[0] == "v1" && parts[1] == "instances" && valid_name(parts[2])) {
    const bool exec = parts[3] == "exec" || parts[3] == "console";
    if (exec || parts[3] == "logs" || parts[3] == "memory") {
      if (request.method != (exec ? "POST" : "GET")) co_return wrong_method(exec ? "POST" : "GET");
      const InstanceId id(parts[2]);
      co_return co_await answer_instance(request, id, parts[3]);
    }
  }
  if (request.method == "GET" && parts.size() >= 3 && parts.size() <= 4 && parts[0] == "v1" && parts[1] == "images" && valid_name(parts[2]) &&
      (parts.size() == 3 || parts[3] == "memory"))
    co_return co_await answer_image(request, ImageId(parts[2]), parts.size() == 4);
  if (request.method == "GET" && parts.size() == 4 && parts[0] == "v1" && parts[1] == "images" && valid_name(parts[2]) && parts[3] == "use")
    co_return co_await answer_use(request, ImageId(parts[2]));
  co_return refusal(Error{Errc::not_found, fmt::format("an agent has no {}", path)});
}

Status Agent::Impl::may_call(const std::string& peer, const AgentCall& what) const {
  const bool known =
      std::ranges::any_of(config.callers, [&](const std::string& prefix) { return peer.starts_with(prefix); });
  if (!known) return fail(Errc::permission, "{} may not call agents", peer);
  if (!peer.starts_with("gate:")) return {};
  // A gate acts for itself only while control is down, and then only where two owners at once are harmless.
  const auto* raise = std::get_if<RaiseCall>(&what);
  if (!raise) return fail(Errc::permission, "a gate may raise, not {}", name_of(what));
  const WorkloadSpec* spec = raise->spec ? &*raise->spec : core.spec(raise->workload);
  if (spec && spec->policy.consistency == Consistency::exclusive)
    return fail(Errc::permission, "{} is exclusive: only control grants it", raise->workload);
  if (raise->epoch.granter() == 0)
    return fail(Errc::permission, "epoch {} is control's: a gate grants its own", raise->epoch);
  return {};
}

asio::awaitable<wire::Response> Agent::Impl::answer_call(const wire::Request& request, std::string kind) {
  auto parsed = api::parse_call(kind, request.body);
  if (!parsed) co_return refusal(parsed.error());
  if (const Status may = may_call(request.peer, *parsed); !may) co_return refusal(may.error());
  const auto result = co_await call(std::move(*parsed));
  if (!result) co_return refusal(result.error());
  co_return reply(200, json(*result));
}

asio::awaitable<wire::Response> Agent::Impl::answer_instance(const wire::Request& request, InstanceId id,
                                                             std::string what) {
  if (!request.peer.starts_with("control:"))
    co_return refusal(Error{Errc::permission, fmt::format("{} may not look into instances", request.peer)});
  const auto link = instances->link(id);
  if (!link) co_return refusal(Error{Errc::not_found, fmt::format("{} is not on {}", id, config.host)});
  if (what == "exec") {
    auto wanted = api::parse<ExecRequest>(request.body);
    if (!wanted) co_return refusal(wanted.error());
    if (wanted->command.empty()) co_return refusal(Error{Errc::invalid_argument, "command: is empty"});
    Epoch epoch;
    if (const auto described = co_await link->describe()) epoch = described->epoch;
    const auto done = co_await link->exec(epoch, std::move(wanted->command));
    if (!done) co_return refusal(done.error());
    const int status = done->status.signal != 0 ? 128 + done->status.signal : done->status.code;
    co_return reply(200, json{{"status", status}, {"output", done->output}, {"truncated", done->truncated}});
  }
  if (what == "console") {
    auto wanted = api::parse_json(request.body);
    if (!wanted) co_return refusal(wanted.error());
    if (!wanted->is_object()) co_return refusal(Error{Errc::invalid_argument, "the body is not a JSON object"});
    for (const char* ours : {"id", "do", "epoch"}) wanted->erase(ours);
    const auto said = co_await link->call("console", std::move(*wanted));
    if (!said) co_return refusal(said.error());
    json answered = *said;
    answered["instance"] = id.str();
    answered["host"] = config.host.str();
    co_return reply(200, answered);
  }
  if (what == "memory") {
    json none = json::object();
    const auto figures = co_await link->call("memory", std::move(none));
    if (!figures) co_return refusal(figures.error());
    co_return reply(200, *figures);
  }
  const auto log = co_await link->log();
  if (!log) co_return refusal(log.error());
  std::size_t wanted = 100;
  if (const std::size_t at = request.target.find("lines="); at != std::string::npos)
    std::from_chars(request.target.data() + at + 6, request.target.data() + request.target.size(), wanted);
  json lines = json::array();
  std::vector<std::string_view> all;
  for (std::size_t at = 0; at < log->size();) {
    const std::size_t end = std::min(log->find('\n', at), log->size());
    all.emplace_back(std::string_view(*log).substr(at, end - at));
    at = end + 1;
  }
  for (std::size_t i = all.size() > wanted ? all.size() - wanted : 0; i < all.size(); ++i)
    lines.push_back(std::string(all[i]));
  co_return reply(200, json{{"lines", std::move(lines)}});
}

}  // namespace yado::agent
