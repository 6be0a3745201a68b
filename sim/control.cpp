#include <fmt/format.h>

#include "cluster.hpp"
#include "model/names.hpp"

namespace yado::sim {

void Control::start() {
  core_ = std::make_unique<control::ControlCore>(control::Settings{});
  ++life_;
  std::vector<control::Record> records;
  for (const auto& [id, record] : disk_) records.push_back(record);
  core_->recover(std::move(records), cluster_.world.now());
  std::set<std::string> gates;
  for (const auto& gate : cluster_.gates) gates.insert(gate->name());
  core_->gates(gates);
  cluster_.world.trace("control starts");
  act();
  push();
}

void Control::kill() {
  core_.reset();
  ++life_;
  cluster_.ledger.granter_died(0);
  // The gates' connections break.
  for (auto& [id, reply] : std::exchange(asks_, {})) reply(fail(Errc::refused, "control died"), false);
  cluster_.world.trace("control dies");
}

void Control::deploy(WorkloadSpec spec) {
  core_->deploy(++last_ask_, std::move(spec), cluster_.world.now());
  act();
}

void Control::heartbeat(const HostReport& report, std::function<void(control::HeartbeatReply)> reply) {
  if (!core_) return;
  auto answer = core_->heartbeat(report, cluster_.world.now());
  act();
  reply(std::move(answer));
}

void Control::exited(const HostId& host, const InstanceId& instance, const WorkloadId& workload) {
  if (!core_) return;
  core_->instance_exited(host, instance, workload, cluster_.world.now());
  act();
}

void Control::renew(const WorkloadId& workload, const InstanceId& instance, Epoch epoch,
                    std::function<void(Result<milliseconds>)> reply) {
  if (core_) reply(core_->renew(workload, instance, epoch, cluster_.world.now()));
}

void Control::ask(const gate::Ask& ask, std::function<void(Result<Route>, bool)> reply) {
  if (!core_) return reply(fail(Errc::refused, "control is down"), false);
  asks_[++last_ask_] = std::move(reply);
  core_->ask(last_ask_, ask.workload, ask.observed, ask.evidence, ask.suspect, cluster_.world.now());
  act();
}

void Control::idle(const NodeName& gate, const gate::ReportIdle& report) {
  if (!core_) return;
  core_->idle(gate, report.workload, report.epoch, report.idle, cluster_.world.now());
  act();
}

void Control::act() {
  World& world = cluster_.world;
  for (const auto& host : core_->hosts()) {
    const std::string boot = fmt::format("{} {} {}", host.report.host, host.report.boot, host.alive);
    std::string& known = boots_[host.report.host];
    if (known != boot) cluster_.ledger.host_given_up(0, std::exchange(known, boot));
  }
  for (control::Action& action : core_->take()) {
    if (auto* a = std::get_if<control::Persist>(&action)) {
      disk_[a->record.spec.name] = a->record;
    } else if (auto* b = std::get_if<control::Call>(&action)) {
      const control::CallId id = b->id;
      const std::uint64_t life = life_;
      auto done = [this, id, life](Result<CallReply> result) {
        if (!core_ || life_ != life) return;
        core_->call_done(id, result, cluster_.world.now());
        act();
      };
      const auto* raise = std::get_if<RaiseCall>(&b->call);
      const WorkloadId workload = workload_of(b->call);
      const Epoch epoch = epoch_of(b->call);
      if (raise) cluster_.ledger.raise_began(workload, epoch, boots_[b->host]);
      auto answered = std::make_shared<bool>(false);
      auto once = [this, answered, done, raise = raise != nullptr, workload, epoch](Result<CallReply> result) {
        if (std::exchange(*answered, true)) return;
        if (raise) cluster_.ledger.raise_ended(workload, epoch);
        done(std::move(result));
      };
      const HostId host = b->host;
      const AgentCall what = b->call;
      world.send("control", host.str(), [this, host, what, once] {
        cluster_.host(host)->call("control", what, [this, host, once](Result<CallReply> result) {
          cluster_.world.send(host.str(), "control", [once, result] { once(result); });
        });
      });
      world.after(b->limit, [once] { once(fail(Errc::timed_out, "no answer")); });
    } else if (auto* p = std::get_if<control::ProbeHost>(&action)) {
      const HostId host = p->host;
      const std::uint64_t life = life_;
      auto answered = std::make_shared<bool>(false);
      auto done = [this, host, life, answered](control::ProbeAnswer answer) {
        if (std::exchange(*answered, true) || !core_ || life_ != life) return;
        core_->host_probed(host, answer, cluster_.world.now());
        act();
      };
      world.packet("control", host.str(), [this, host, done] {
        Host* there = cluster_.host(host);
        if (!there->up()) return;
        const auto answer = there->agent_up() ? control::ProbeAnswer::listening : control::ProbeAnswer::refused;
        cluster_.world.packet(host.str(), "control", [done, answer] { done(answer); });
      });
      world.after(p->limit, [done] { done(control::ProbeAnswer::none); });
    } else if (auto* c = std::get_if<control::Answer>(&action)) {
      auto found = asks_.find(c->ask);
      if (found == asks_.end()) continue;
      auto reply = std::move(found->second);
      asks_.erase(found);
      reply(c->route, c->fenced);
    } else if (std::get_if<control::PushRoutes>(&action)) {
      const RouteTable table = core_->routes();
      for (auto& gate : cluster_.gates)
        world.send("control", gate->name(), [&gate = *gate, table] { gate.routes(table); });
    } else if (auto* e = std::get_if<control::Emit>(&action)) {
      std::string fields;
      for (const auto& [key, value] : e->event.fields) fields += fmt::format(" {}={}", key, value);
      world.trace(fmt::format("control: {} {} {} {} {}{}", e->event.kind, e->event.workload, e->event.host,
                              e->event.instance, e->event.epoch, fields));
    }
  }
  const Instant next = core_->next_deadline();
  if (next == Instant::max() || (armed_ > world.now() && armed_ <= next)) return;
  armed_ = std::max(next, world.now() + 1ms);
  const std::uint64_t life = life_;
  world.at(armed_, [this, life] {
    if (core_ && life_ == life) tick();
  });
}

void Control::tick() {
  armed_ = Instant{};
  core_->tick(cluster_.world.now());
  act();
}

/// The stream to every gate: the whole table now and then is what its shell gets after a broken connection.
void Control::push() {
  if (!core_) return;
  const RouteTable table = core_->routes();
  for (auto& gate : cluster_.gates)
    cluster_.world.send("control", gate->name(), [&gate = *gate, table] { gate.routes(table); });
  const std::uint64_t life = life_;
  cluster_.world.after(500ms, [this, life] {
    if (life_ == life) push();
  });
}

}  // namespace yado::sim
