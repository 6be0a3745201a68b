#include "gate/control_link.hpp"

#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/calls.hpp"
#include "api/json.hpp"
#include "base/log.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"

namespace yado::gate {
namespace asio = boost::asio;
using nlohmann::json;
namespace {

/// Control says something every 500 ms (docs/api.md, GET /v1/routes): three of those missed.
constexpr nanoseconds silence = 1500ms;
constexpr nanoseconds first_pause = 20ms;
constexpr nanoseconds longest_pause = 1s;
/// A table of a thousand services is about 1 MB; a line longer than this is not one.
constexpr std::size_t longest_line_bytes = 64 * 1024 * 1024;
/// Events wait for a control that is away; the oldest go first.
constexpr std::size_t most_events = 1000;

wire::Request post(std::string target, const json& body, std::string request_id) {
  wire::Request request;
  request.method = "POST";
  request.target = std::move(target);
  request.headers.emplace_back("content-type", "application/json");
  request.headers.emplace_back("x-request-id", std::move(request_id));
  request.body = api::dump(body);
  return request;
}

}  // namespace

Result<std::unique_ptr<ControlLink>> ControlLink::open(asio::io_context& io, Endpoint control, wire::Identity identity,
                                                       std::string peer, Listener listener) {
  YADO_ASSIGN(wire::Client client, wire::Client::tls(io, control.address, control.port, identity, std::move(peer)),
              "control");
  return std::unique_ptr<ControlLink>(new ControlLink(io, std::move(client), std::move(identity), std::move(listener)));
}

ControlLink::ControlLink(asio::io_context& io, wire::Client client, wire::Identity identity, Listener listener)
    : io_(io),
      client_(std::move(client)),
      identity_(std::move(identity)),
      listener_(std::move(listener)),
      following_(io),
      asking_(io),
      others_(io) {}

void ControlLink::start() {
  pause_ = first_pause;
  following_.spawn<bool>(follow(), [](bool) {});
}

void ControlLink::stop() {
  following_.cancel();
  asking_.cancel();
  others_.cancel();
}

// ---- the stream ----------------------------------------------------------------------------------------------------

// A coroutine of Jobs is cancelled before the link goes: nothing of the link is touched after an await that ended by
// it.
asio::awaitable<bool> ControlLink::follow() {
  for (;;) {
    line_.clear();
    wire::Request request;
    request.target = "/v1/routes?follow=1";
    std::function<Status(std::string_view)> sink = [this](std::string_view piece) { return take(piece); };
    auto ended = co_await client_.stream(std::move(request), silence, silence, std::move(sink));
    if ((co_await asio::this_coro::cancellation_state).cancelled() != asio::cancellation_type::none) co_return false;
    if (!ended)
      lost(ended.error().text());
    else
      lost(ended->status / 100 == 2 ? "it ended the stream of routes"
                                    : fmt::format("it answered {} to a request for its routes", ended->status));
    asio::steady_timer timer(io_, pause_);
    pause_ = std::min(2 * pause_, longest_pause);
    co_await timer.async_wait(asio::use_awaitable);
  }
}

/// A piece of the stream: any number of lines, and parts of lines.
Status ControlLink::take(std::string_view piece) {
  for (std::size_t end = piece.find('\n'); end != std::string_view::npos; end = piece.find('\n')) {
    line_.append(piece.substr(0, end));
    piece.remove_prefix(end + 1);
    const std::string line = std::exchange(line_, {});
    if (!line.empty()) {
      auto table = api::parse<RouteTable>(line);
      if (!table) return context(table.error(), "route table from control");
      listener_.table(std::move(*table));
    }
    heard();
  }
  if (line_.size() + piece.size() > longest_line_bytes) return fail(Errc::corrupt, "a line without an end");
  line_.append(piece);
  return {};
}

void ControlLink::heard() {
  pause_ = first_pause;
  if (up_) return;
  up_ = told_ = true;
  log::info("control answers");
  listener_.reachable(true);
  begin_sending();
}

void ControlLink::lost(std::string_view why) {
  if (!up_ && told_) return;
  up_ = false;
  told_ = true;
  log::warn("control does not answer: {}", why);
  asking_.cancel();
  listener_.reachable(false);
}

// ---- calls ---------------------------------------------------------------------------------------------------------

std::string ControlLink::next_request_id() {
  return fmt::format("{:x}-{}", os::now().time_since_epoch().count(), ++requests_);
}

void ControlLink::ask(const Ask& ask, nanoseconds limit) {
  json body{{"observed", ask.observed.value()}, {"evidence", name_of(ask.evidence)}};
  if (!ask.suspect.empty()) body["suspect"] = ask.suspect.str();
  wire::Request request = post(fmt::format("/v1/workloads/{}/ask", ask.workload), body, next_request_id());
  asking_.spawn<Result<wire::Response>>(
      client_.call(std::move(request), limit), [this, workload = ask.workload](Result<wire::Response> response) {
        if (!response) {
          // No answer within the limit is one: control is there, or the stream would have said otherwise.
          if (response.error().code == Errc::timed_out)
            return listener_.asked(workload, std::unexpected(response.error()));
          return lost(response.error().text());
        }
        auto answer = api::body_of(*response);
        if (!answer) return listener_.asked(workload, std::unexpected(answer.error()));
        Relocated relocated;
        auto route = answer->find("route");
        if (route == answer->end())
          return listener_.asked(workload, fail(Errc::corrupt, "control's answer names no route"));
        auto read = api::from_json_value<Route>(*route);
        if (!read) return listener_.asked(workload, context(read.error(), "control's answer: route"));
        relocated.route = std::move(*read);
        relocated.fenced = answer->contains("fenced") && (*answer)["fenced"] == true;
        listener_.asked(workload, std::move(relocated));
      });
}

void ControlLink::raise(const RaiseWithoutControl& raise, const Endpoint& agent, nanoseconds limit) {
  auto client = wire::Client::tls(io_, agent.address, agent.port, identity_, fmt::format("agent:{}", raise.host));
  if (!client) {
    asio::post(
        io_, [listener = listener_, raise, error = client.error()] { listener.raised(raise, std::unexpected(error)); });
    return;
  }
  RaiseCall call;
  call.workload = raise.workload;
  call.instance = raise.instance;
  call.epoch = raise.epoch;
  wire::Request request = post("/v1/calls/raise", json(AgentCall(std::move(call))), next_request_id());
  // The client may go: a call that is under way goes on to its end.
  others_.spawn<Result<wire::Response>>(client->call(std::move(request), limit),
                                        [this, raise](Result<wire::Response> response) {
                                          if (!response)
                                            return listener_.raised(raise, std::unexpected(response.error()));
                                          auto body = api::body_of(*response);
                                          if (!body) return listener_.raised(raise, std::unexpected(body.error()));
                                          listener_.raised(raise, api::from_json_value<CallReply>(*body));
                                        });
}

void ControlLink::report_idle(const ReportIdle& idle) {
  wire::Request request = post(fmt::format("/v1/workloads/{}/idle", idle.workload),
                               json{{"observed", idle.epoch.value()}, {"idle", idle.idle}}, next_request_id());
  asking_.spawn<Result<wire::Response>>(client_.call(std::move(request), silence), [](Result<wire::Response> response) {
    if (!response) log::debug("report of an idle workload: {}", response.error().text());
  });
}

// ---- events --------------------------------------------------------------------------------------------------------

bool ControlLink::report(const yado::Event& event) {
  json body = event;
  body["at_ns"] = os::now().time_since_epoch().count();
  body["at_ms"] = os::wall_ms();
  events_.push_back(api::dump(body));
  const bool fits = events_.size() <= most_events;
  if (!fits) events_.pop_front();
  if (up_) begin_sending();
  return fits;
}

void ControlLink::begin_sending() {
  if (sending_ || events_.empty()) return;
  sending_ = true;
  others_.spawn<bool>(send_events(), [this](bool) { sending_ = false; });
}

asio::awaitable<bool> ControlLink::send_events() {
  while (!events_.empty()) {
    wire::Request request;
    request.method = "POST";
    request.target = "/v1/events";
    request.headers.emplace_back("content-type", "application/json");
    request.headers.emplace_back("x-request-id", next_request_id());
    request.body = events_.front();
    auto sent = co_await client_.call(std::move(request), silence);
    if ((co_await asio::this_coro::cancellation_state).cancelled() != asio::cancellation_type::none) co_return false;
    if (!sent) co_return false;  // goes on when control answers again
    if (!events_.empty()) events_.pop_front();
  }
  co_return true;
}

}  // namespace yado::gate
