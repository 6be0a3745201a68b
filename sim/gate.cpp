#include <fmt/format.h>

#include "cluster.hpp"
#include "model/names.hpp"

namespace yado::sim {

Gate::Gate(Cluster& cluster, NodeName name, std::uint8_t granter)
    : cluster_(cluster), name_(std::move(name)), core_(granter) {}

void Gate::request(const std::string& host_name, gate::Method method, bool has_key) {
  const gate::RequestId id = ++cluster_.last_request;
  cluster_.ledger.asked(id, WorkloadId(host_name.substr(0, host_name.find('.'))), method, has_key);
  core_.request(id, host_name, method, has_key, true, cluster_.world.now());
  act();
}

void Gate::routes(const RouteTable& table) {
  control_seen();
  core_.routes(table, cluster_.world.now());
  act();
}

void Gate::control_seen() {
  const Instant now = control_heard_ = cluster_.world.now();
  core_.control_reachable(true, now);
  // The shell's rule: three keep-alives of 500 ms missed.
  cluster_.world.after(1501ms, [this, now] {
    if (control_heard_ != now) return;
    core_.control_reachable(false, cluster_.world.now());
    act();
  });
}

void Gate::act() {
  World& world = cluster_.world;
  for (gate::Action& action : core_.take()) {
    if (auto* a = std::get_if<gate::Forward>(&action)) {
      forward(*a);
    } else if (auto* b = std::get_if<gate::Probe>(&action)) {
      const gate::Probe probe = *b;
      world.packet(name_, probe.host.str(), [this, probe] {
        if (!cluster_.host(probe.host)->up()) return;
        cluster_.world.packet(probe.host.str(), name_, [this, probe] {
          core_.probe_answered(probe.host, probe.token, cluster_.world.now());
          act();
        });
      });
    } else if (auto* c = std::get_if<gate::Ask>(&action)) {
      const gate::Ask ask = *c;
      world.send(name_, "control", [this, ask] {
        cluster_.control.ask(ask, [this, ask](Result<Route> route, bool fenced) {
          cluster_.world.send("control", name_, [this, ask, route, fenced] {
            const Instant now = cluster_.world.now();
            if (route)
              core_.relocated(ask.workload, *route, fenced, now);
            else if (route.error().code == Errc::refused)
              core_.control_reachable(false, now);  // the connection broke: nothing is known of the question
            else
              core_.relocation_failed(ask.workload, route.error(), now);
            act();
          });
        });
      });
    } else if (auto* d = std::get_if<gate::RaiseWithoutControl>(&action)) {
      const gate::RaiseWithoutControl raise = *d;
      RaiseCall call{.workload = raise.workload, .instance = raise.instance, .epoch = raise.epoch};
      for (const auto& [image, report] : cluster_.host(raise.host)->disk())
        if (report.workload == raise.workload) call.image = image;
      auto answered = std::make_shared<bool>(false);
      auto done = [this, raise, answered](Result<CallReply> result) {
        if (std::exchange(*answered, true)) return;
        const Instant now = cluster_.world.now();
        if (!result) {
          core_.relocation_failed(raise.workload, Error{Errc::unavailable, result.error().message}, now);
          return act();
        }
        for (const Route& known : core_.table().routes) {
          if (known.workload != raise.workload) continue;
          Route route = known;
          route.state = RouteState::up;
          route.epoch = raise.epoch;
          route.host = raise.host;
          route.endpoint = result->endpoint;
          core_.relocated(raise.workload, route, false, now);
          return act();
        }
      };
      world.send(name_, raise.host.str(), [this, raise, call, done] {
        cluster_.host(raise.host)->call(name_, call, [this, raise, done](Result<CallReply> result) {
          cluster_.world.send(raise.host.str(), name_, [done, result] { done(result); });
        });
      });
      world.after(10s, [done] { done(fail(Errc::timed_out, "no answer")); });
    } else if (auto* e = std::get_if<gate::Refuse>(&action)) {
      attempt_.erase(e->request);
      world.trace(fmt::format("{}: refuses {} with {}: {}", name_, e->request, e->status, e->why));
      cluster_.ledger.refused(e->request, e->outcome, e->why);
    } else if (auto* f = std::get_if<gate::Abandon>(&action)) {
      attempt_.erase(f->request);
    } else if (auto* g = std::get_if<gate::ReportIdle>(&action)) {
      const gate::ReportIdle report = *g;
      world.send(name_, "control", [this, report] { cluster_.control.idle(name_, report); });
    } else if (auto* h = std::get_if<gate::Report>(&action)) {
      world.trace(fmt::format("{}: {} {} {} {}", name_, h->event.kind, h->event.workload, h->event.host, h->event.epoch));
    }
  }
  const Instant next = core_.next_deadline();
  if (next == Instant::max() || (armed_ > world.now() && armed_ <= next)) return;
  armed_ = std::max(next, world.now() + 100us);
  world.at(armed_, [this] { tick(); });
}

void Gate::tick() {
  armed_ = Instant{};
  core_.tick(cluster_.world.now());
  act();
}

/// One attempt: connect, send, wait. What an abandoned attempt still hears is ignored by its number.
void Gate::forward(const gate::Forward& forward) {
  World& world = cluster_.world;
  const gate::RequestId id = forward.request;
  const int attempt = attempt_[id] = forward.attempt;
  const Instant began = world.now();
  const NodeName host = forward.host.str();
  auto current = [this, id, attempt] {
    auto found = attempt_.find(id);
    return found != attempt_.end() && found->second == attempt;
  };
  auto back = [this, host](std::function<void()> what) {
    cluster_.world.send(host, name_, [this, what] {
      what();
      act();
    });
  };
  auto closed = [this, id, attempt, back] {
    back([this, id, attempt] { core_.failed(id, attempt, gate::Failure::closed, cluster_.world.now()); });
  };
  const InstanceId instance(forward.endpoint.address);
  auto answer = [this, id, attempt, instance, back, current] {
    back([this, id, attempt, instance, current] {
      if (!current()) return;
      core_.answering(id, attempt, cluster_.world.now());
      attempt_.erase(id);
      cluster_.ledger.answered(id, name_, instance.str());
      core_.finished(id, cluster_.world.now());
    });
  };
  // A fresh connection: SYN, SYN-ACK, then the request. A kept one: the request at once, and RST if it is dead.
  auto send_request = [this, id, attempt, host, instance, answer, closed, current] {
    if (!current()) return;
    core_.sent(id, attempt);
    cluster_.world.send(name_, host, [this, id, host, instance, answer, closed] {
      cluster_.host(HostId(host))->request(id, instance, [closed](bool accepted) { if (!accepted) closed(); }, answer, closed);
    });
  };
  if (!forward.fresh_connection) return send_request();
  world.send(name_, host, [this, id, attempt, host, instance, began, back, send_request] {
    Host* there = cluster_.host(HostId(host));
    if (!there->up()) return;
    const bool listening = there->containers().contains(instance);
    back([this, id, attempt, began, listening, send_request] {
      const Instant now = cluster_.world.now();
      if (!listening) return core_.failed(id, attempt, gate::Failure::refused, now);
      core_.connected(id, attempt, now - began, now);
      send_request();
    });
  });
}

}  // namespace yado::sim
