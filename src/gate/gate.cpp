#include "gate/gate.hpp"

#include <algorithm>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/json.hpp"
#include "base/log.hpp"
#include "gate/control_link.hpp"
#include "gate/hub.hpp"
#include "gate/session.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "probe/probe.hpp"
#include "wire/listen.hpp"
#include "wire/server.hpp"

namespace yado::gate {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
namespace {

/// Out of file descriptors or memory: accepting fails until a connection is closed. Trying again at once would spin.
constexpr auto accept_retry = 50ms;
/// The kernel sends the second SYN of a connect after one second; a probe is one SYN.
constexpr nanoseconds probe_limit = 1s;

struct Listener {
  explicit Listener(asio::io_context& io) : acceptor(io.get_executor()), retry(io) {}
  asio::basic_socket_acceptor<tcp, Executor> acceptor;
  asio::steady_timer retry;
  std::uint16_t port = 0;
  bool resting = false;  // the gate has all the connections it may have
};

nlohmann::json as_json(const Counters& c) {
  return {{"connections", {{"all", c.connections}, {"open", c.open}}},
          {"requests", c.requests},
          {"held", c.held},
          {"attempts", c.attempts},
          {"fresh_connections", c.fresh_connections},
          {"answers",
           {{"2xx", c.answers_by_class[2]},
            {"3xx", c.answers_by_class[3]},
            {"4xx", c.answers_by_class[4]},
            {"5xx", c.answers_by_class[5]}}},
          {"errors",
           {{"malformed", c.refused_malformed},
            {"refused", c.refused},
            {"unknown_outcomes", c.unknown_outcomes},
            {"broken_off", c.broken_off},
            {"clients_gone", c.clients_gone}}},
          {"relocations", c.relocations},
          {"events_dropped", c.events_dropped},
          {"ticks_without_progress", c.ticks_without_progress}};
}

}  // namespace

struct Gate::Impl : std::enable_shared_from_this<Impl> {
  asio::io_context& io;
  Config config;
  std::shared_ptr<Hub> hub;
  std::unique_ptr<ControlLink> link;
  std::vector<std::shared_ptr<Listener>> listeners;
  std::unique_ptr<wire::Server> admin;
  Jobs probes;
  RouteTable latest;  // with the owners that this gate made itself
  bool stopped = false;

  Impl(asio::io_context& context, Config settings) : io(context), config(std::move(settings)), probes(context) {}

  // ---- from the Scheduler ----

  void act(Action& action) {
    if (auto* probe = std::get_if<Probe>(&action)) return send_probe(*probe);
    if (auto* ask = std::get_if<Ask>(&action)) return link->ask(*ask, patience_for(ask->workload));
    if (auto* raise = std::get_if<RaiseWithoutControl>(&action))
      return link->raise(*raise, agent_of(raise->host), patience_for(raise->workload));
    if (auto* idle = std::get_if<ReportIdle>(&action)) return link->report_idle(*idle);
    if (auto* report = std::get_if<Report>(&action))
      if (!link->report(report->event)) ++hub->counters.events_dropped;
  }

  void send_probe(const Probe& probe) {
    probes.spawn<Result<probe::Heard>>(probe::reach(io, probe.endpoint, probe_limit),
                         [this, host = probe.host, token = probe.token](Result<probe::Heard> answered) {
                           if (!answered) return log::debug("probe of {}: {}", host, answered.error().text());
                           hub->scheduler.probe_answered(host, token, os::now());
                           hub->carry_out();
                         });
  }

  /// As long as the Scheduler holds requests for it.
  nanoseconds patience_for(const WorkloadId& workload) const {
    auto route = std::ranges::find(latest.routes, workload, &Route::workload);
    return 2 * (route == latest.routes.end() ? Readiness{} : route->service.ready).start_limit;
  }

  Endpoint agent_of(const HostId& host) const {
    auto found = std::ranges::find(latest.hosts, host, &HostAddress::host);
    return found == latest.hosts.end() ? Endpoint{} : found->agent;
  }

  // ---- from control ----

  ControlLink::Listener listener() {
    ControlLink::Listener made;
    made.table = [this](RouteTable table) { take(std::move(table), true); };
    made.reachable = [this](bool reachable) {
      hub->scheduler.control_reachable(reachable, os::now());
      hub->carry_out();
    };
    made.asked = [this](const WorkloadId& workload, Result<ControlLink::Relocated> answer) {
      if (!answer) return relocation_failed(workload, answer.error());
      relocated(workload, std::move(answer->route), answer->fenced);
    };
    made.raised = [this](const RaiseWithoutControl& raise, Result<CallReply> reply) {
      auto route = std::ranges::find(latest.routes, raise.workload, &Route::workload);
      if (!reply || route == latest.routes.end())
        return relocation_failed(raise.workload,
                                 Error{Errc::unavailable, reply ? "the workload was removed" : reply.error().text()});
      Route made_here = *route;
      made_here.state = RouteState::up;
      made_here.epoch = raise.epoch;
      made_here.host = raise.host;
      made_here.endpoint = reply->endpoint;
      relocated(raise.workload, std::move(made_here), false);
    };
    return made;
  }

  void take(RouteTable table, bool keep) {
    // Control may not know yet of an owner that this gate had to make.
    RouteTable merged = table;
    for (Route& route : merged.routes) {
      auto mine = std::ranges::find(latest.routes, route.workload, &Route::workload);
      if (mine == latest.routes.end() || mine->epoch <= route.epoch) continue;
      mine->service = route.service;
      route = *mine;
    }
    latest = std::move(merged);
    hub->know_services(latest);
    hub->scheduler.routes(std::move(table), os::now());
    hub->carry_out();
    settle_table(keep);
  }

  void relocated(const WorkloadId& workload, Route route, bool fenced) {
    ++hub->counters.relocations;
    auto known = std::ranges::find(latest.routes, workload, &Route::workload);
    const bool newer = known != latest.routes.end() && route.epoch >= known->epoch;
    if (newer) *known = route;
    hub->scheduler.relocated(workload, std::move(route), fenced, os::now());
    hub->carry_out();
    if (newer) settle_table(true);
  }

  void relocation_failed(const WorkloadId& workload, const Error& error) {
    hub->scheduler.relocation_failed(workload, error, os::now());
    hub->carry_out();
  }

  void settle_table(bool keep) {
    hub->pool.retain([this](const Place& place) {
      return std::ranges::any_of(latest.routes, [&](const Route& route) {
        return route.state == RouteState::up && route.host == place.host && route.endpoint == place.endpoint;
      });
    });
    if (!keep || config.table_file.empty()) return;
    if (Status kept = os::replace_text(config.table_file, api::dump(nlohmann::json(latest))); !kept)
      log::warn("the route table is not kept for a start without control: {}", kept.error().text());
  }

  void load_table() {
    std::error_code error;
    if (config.table_file.empty() || !std::filesystem::exists(config.table_file, error)) return;
    auto text = os::read_text(config.table_file);
    auto table = text ? api::parse<RouteTable>(*text) : Result<RouteTable>(std::unexpected(text.error()));
    if (!table) return log::warn("{} is not used: {}", config.table_file.string(), table.error().text());
    take(std::move(*table), false);
  }

  // ---- clients ----

  Status listen(os::Fd socket) {
    YADO_ASSIGN(const std::uint16_t port, wire::check_listener(socket, true), "gate");
    auto listener = std::make_shared<Listener>(io);
    int family = AF_INET;
    socklen_t size = sizeof family;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &family, &size);
    error_code error;
    listener->acceptor.assign(family == AF_INET6 ? tcp::v6() : tcp::v4(), socket.get(), error);
    if (error) return fail(Errc::io, "watch a listening socket: {}", error.message());
    (void)socket.release();
    listener->port = port;
    listeners.push_back(listener);
    accept(listener);
    return {};
  }

  void accept(const std::shared_ptr<Listener>& listener) {
    if (stopped) return;
    listener->resting = hub->counters.open >= config.limits.connections;
    if (listener->resting) return;
    listener->acceptor.async_accept([self = shared_from_this(), listener](const error_code& error, Socket socket) {
      if (self->stopped) return;
      if (!error) {
        self->begin(std::move(socket));
      } else if (error != asio::error::connection_aborted) {
        log::error("cannot accept connections: {}", error.message());
        listener->retry.expires_after(accept_retry);
        listener->retry.async_wait([self, listener](const error_code&) { self->accept(listener); });
        return;
      }
      self->accept(listener);
    });
  }

  void begin(Socket socket) {
    error_code error;
    const auto from = socket.remote_endpoint(error);
    if (error) return;  // gone already
    auto address = from.address();
    if (address.is_v6() && address.to_v6().is_v4_mapped())
      address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
    auto session = std::make_shared<Session>(hub, std::move(socket), address.to_string());
    hub->join(session);
    asio::co_spawn(io.get_executor(), Session::run(session), asio::detached);
  }

  Status open_admin() {
    if (config.admin_socket.empty()) return {};
    wire::Server::Handler handler = [this](const wire::Request& request, wire::Responder& responder) {
      return serve_admin(request, responder);
    };
    admin = std::make_unique<wire::Server>(io, std::move(handler), wire::Server::Limits{});
    return admin->listen_unix(config.admin_socket, 0600);
  }

  asio::awaitable<void> serve_admin(const wire::Request& request, wire::Responder& responder) {
    wire::Response response;
    if (request.method == "GET" && request.target == "/v1/gate")
      response = api::answer(as_json(hub->counters));
    else if (request.method == "GET" && request.target == "/v1/version")
      response = api::answer({{"name", "yado"}, {"version", YADO_VERSION}, {"api", api::version}, {"role", "gate"}});
    else
      response = api::answer(Error{Errc::not_found, fmt::format("nothing is served at {}", request.target)});
    auto sent = co_await responder.respond(std::move(response));
    (void)sent;  // a peer that is gone needs no answer
  }

  // ---- the whole ----

  Status run() {
    if (config.granter == 0)
      return fail(Errc::invalid_argument, "granter 0 is control's: give every gate a number from 1 to 255");
    hub = std::make_shared<Hub>(io, config.limits, config.granter, [this](Action& action) { act(action); });
    hub->on_leave = [this] {
      for (const auto& listener : listeners)
        if (listener->resting) accept(listener);
    };
    YADO_ASSIGN(link, ControlLink::open(io, config.control, config.identity, config.control_peer, listener()), "gate");
    load_table();
    for (const Endpoint& at : config.listen) {
      YADO_ASSIGN(os::Fd socket, wire::make_tcp_listener(at.address, at.port), "gate");
      YADO_TRY(listen(std::move(socket)), "gate");
    }
    for (os::Fd& socket : config.inherited) YADO_TRY(listen(std::move(socket)), "gate");
    YADO_TRY(open_admin(), "gate: admin socket");
    link->start();
    return {};
  }

  void stop() {
    if (std::exchange(stopped, true)) return;
    for (const auto& listener : listeners) {
      error_code ignored;
      listener->acceptor.close(ignored);
      listener->retry.cancel();
    }
    if (admin) admin->stop();
    probes.cancel();
    if (link) link->stop();
    if (hub) {
      hub->on_leave = nullptr;
      hub->stop();
    }
  }
};

Gate::Gate(asio::io_context& io, Config config) : impl_(std::make_shared<Impl>(io, std::move(config))) {}
Gate::~Gate() { impl_->stop(); }
Status Gate::run() { return impl_->run(); }
void Gate::stop() { impl_->stop(); }

std::vector<std::uint16_t> Gate::ports() const {
  std::vector<std::uint16_t> ports;
  for (const auto& listener : impl_->listeners) ports.push_back(listener->port);
  return ports;
}

Counters Gate::counters() const { return impl_->hub ? impl_->hub->counters : Counters{}; }

}  // namespace yado::gate
