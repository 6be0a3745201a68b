#include <fmt/format.h>

#include "cluster.hpp"
#include "model/names.hpp"

namespace yado::sim {

Host::Host(Cluster& cluster, HostId id) : cluster_(cluster), id_(std::move(id)) {}

// ---- life and death ------------------------------------------------------------------------------------------------

void Host::boot() {
  up_ = true;
  ++boots_;
  start_agent();
}

void Host::die() {
  up_ = false;
  ++agent_life_;
  agent_.reset();
  replies_.clear();
  for (auto& [id, container] : containers_) set_executing(container, false);
  containers_.clear();
  cluster_.world.trace(fmt::format("{} dies", id_));
}

void Host::start_agent() {
  agent_ = std::make_unique<agent::AgentCore>();
  ++agent_life_;
  agent_->recover_sequence(static_cast<std::uint64_t>(cluster_.world.now().time_since_epoch() / std::chrono::microseconds(1)));
  for (const auto& [workload, epoch] : fences_) agent_->recover_fence(workload, epoch);
  for (const auto& [workload, spec] : specs_) agent_->recover_spec(spec);
  const Instant now = cluster_.world.now();
  std::set<ImageId> present;
  for (const auto& [image, report] : images_) present.insert(image);
  agent_->images(present);
  for (auto& [id, container] : containers_) {
    InstanceReport report = container.report;
    report.age = std::chrono::duration_cast<milliseconds>(now - container.since);
    if (!container.executing && report.state == InstanceState::running) report.state = InstanceState::frozen;
    agent_->adopt(report, now);
  }
  act();
  heartbeat();
}

void Host::kill_agent() {
  ++agent_life_;
  agent_.reset();
  cluster_.world.trace(fmt::format("{}: agent dies", id_));
  // Its kernel lives and closes its connections.
  for (auto& [id, reply] : std::exchange(replies_, {})) reply(fail(Errc::unavailable, "{}: the agent died", id_));
}

void Host::set_executing(Container& container, bool executing) {
  if (container.executing == executing) return;
  container.executing = executing;
  const auto& report = container.report;
  if (report.purpose != Purpose::owner) return;
  const std::string name = fmt::format("{}/{}", id_, report.id);
  if (executing)
    cluster_.ledger.may_run(report.workload, container.spec.policy.consistency, name, report.epoch);
  else
    cluster_.ledger.stopped(report.workload, name);
  if (executing && !container.stalled) {
    auto backlog = std::exchange(container.backlog, {});
    for (auto& waiting : backlog) waiting.go_on();
  }
}

void Host::kill_container(InstanceId id) {
  auto found = containers_.find(id);
  if (found == containers_.end()) return;
  const WorkloadId workload = found->second.report.workload;
  cluster_.world.trace(fmt::format("{}: {} exits", id_, id));
  remove(id, false);
  if (!agent_) return;
  const bool news = agent_->exited(id, "killed", cluster_.world.now());
  act();
  if (news)
    cluster_.world.send(id_.str(), "control", [this, id, workload] { cluster_.control.exited(id_, id, workload); });
}

void Host::stall_containers(bool stalled) {
  for (auto& [id, container] : containers_) {
    container.stalled = stalled;
    if (stalled || !container.executing) continue;
    auto backlog = std::exchange(container.backlog, {});
    for (auto& waiting : backlog) waiting.go_on();
  }
}

void Host::remove(const InstanceId& id, bool tell_agent) {
  if (auto found = containers_.find(id); found != containers_.end()) {
    set_executing(found->second, false);
    const auto backlog = std::move(found->second.backlog);
    containers_.erase(found);
    for (const auto& waiting : backlog) waiting.closed();  // RST
  }
  if (tell_agent && agent_) {
    agent_->gone(id, cluster_.world.now());
    act();
  }
}

Container* Host::find(const InstanceId& id, std::uint64_t life) {
  auto found = containers_.find(id);
  return found == containers_.end() || found->second.life != life ? nullptr : &found->second;
}

// ---- the agent's shell ---------------------------------------------------------------------------------------------

void Host::heartbeat() {
  if (!agent_) return;
  const std::uint64_t life = agent_life_;
  HostReport report{.host = id_, .boot = fmt::format("boot-{}", boots_), .agent = {id_.str(), 7000}, .memory_free_bytes = 1u << 30};
  report.instances = agent_->report(report.sequence, cluster_.world.now());
  report.fences = agent_->fences();
  for (const auto& [id, image] : images_) report.images.push_back(image);
  cluster_.world.send(id_.str(), "control", [this, report, life] {
    cluster_.control.heartbeat(report, [this, life](control::HeartbeatReply reply) {
      cluster_.world.send("control", id_.str(), [this, life, reply] {
        if (!agent_ || agent_life_ != life) return;
        for (const StopCall& call : reply.retire) agent_->call(++last_call_, call, cluster_.world.now());
        for (const DropImageCall& call : reply.drop) agent_->call(++last_call_, call, cluster_.world.now());
        act();
      });
    });
  });
  cluster_.world.after(200ms, [this, life] {
    if (agent_life_ == life) heartbeat();
  });
}

void Host::call(const NodeName& from, AgentCall call, std::function<void(Result<CallReply>)> reply) {
  if (!agent_) return reply(fail(Errc::unavailable, "{}: nobody listens", id_));
  cluster_.world.trace(fmt::format("{}: {} {} {} from {}", id_, name_of(call), workload_of(call), epoch_of(call), from));
  replies_[++last_call_] = std::move(reply);
  agent_->call(last_call_, call, cluster_.world.now());
  act();
}

void Host::act() {
  if (!agent_) return;
  for (agent::Action& action : agent_->take()) {
    if (auto* a = std::get_if<agent::PersistFence>(&action)) {
      fences_[a->workload] = a->epoch;
    } else if (auto* b = std::get_if<agent::PersistSpec>(&action)) {
      specs_[b->spec.name] = b->spec;
    } else if (auto* c = std::get_if<agent::Launch>(&action)) {
      launch(*c);
    } else if (auto* d = std::get_if<agent::Promote>(&action)) {
      promote(*d);
    } else if (auto* e = std::get_if<agent::Freeze>(&action)) {
      const InstanceId id = e->instance;
      const std::uint64_t life = agent_life_;
      cluster_.world.after(1ms, [this, id, life] {
        auto found = containers_.find(id);
        if (found != containers_.end()) {
          set_executing(found->second, false);
          found->second.report.state = InstanceState::frozen;
          if (found->second.holder) found->second.holder->sleep();
        }
        if (!agent_ || agent_life_ != life) return;
        agent_->frozen(id, found == containers_.end() ? Status(fail(Errc::not_found, "gone")) : Status(), cluster_.world.now());
        act();
      });
    } else if (auto* f = std::get_if<agent::Kill>(&action)) {
      const InstanceId id = f->instance;
      const std::uint64_t life = agent_life_;
      cluster_.world.after(cluster_.world.random.duration(1ms, 20ms), [this, id, life] { remove(id, agent_life_ == life); });
    } else if (auto* g = std::get_if<agent::Side>(&action)) {
      side(*g);
    } else if (auto* h = std::get_if<agent::Reply>(&action)) {
      auto found = replies_.find(h->call);
      if (found == replies_.end()) continue;  // asked by a heart-beat
      auto reply = std::move(found->second);
      replies_.erase(found);
      reply(h->result);
    }
  }
}

void Host::launch(const agent::Launch& launch) {
  World& world = cluster_.world;
  Container& container = containers_[launch.instance];
  container = Container{.report = {.id = launch.instance, .workload = launch.spec.name, .purpose = launch.purpose,
                                   .epoch = launch.epoch, .state = InstanceState::starting,
                                   .endpoint = {launch.instance.str(), 1}, .image = launch.image},
                        .spec = launch.spec, .since = world.now(), .life = ++container_life_};
  const nanoseconds took = launch.way == Way::image ? world.random.duration(40ms, 120ms) : world.random.duration(300ms, 900ms);
  const bool works = !world.random.chance(0.03);
  const InstanceId id = launch.instance;
  const std::uint64_t life = container.life, agent_life = agent_life_;
  world.after(took, [this, id, life, agent_life, took, works] {
    Container* made = find(id, life);
    if (!made) return;
    if (!works) {
      if (agent_ && agent_life_ == agent_life) {
        agent_->launched(id, fail(Errc::application, "simulated failure"), cluster_.world.now());
        act();
      }
      return;
    }
    if (made->report.purpose == Purpose::standby) {
      made->report.state = InstanceState::frozen;
      made->since = cluster_.world.now();
      if (agent_ && agent_life_ == agent_life) {
        agent_->launched(id, agent::Launched{made->report.endpoint, {took, {}}}, cluster_.world.now());
        act();
      }
      return;
    }
    confirm_running(id, took, cluster_.world.now() + 20s);
  });
}

void Host::promote(const agent::Promote& promote) {
  auto found = containers_.find(promote.instance);
  if (found == containers_.end()) {
    agent_->launched(promote.instance, fail(Errc::not_found, "gone"), cluster_.world.now());
    return act();
  }
  Container& container = found->second;
  container.report.purpose = Purpose::owner;
  container.report.epoch = promote.epoch;
  container.report.state = InstanceState::starting;
  container.spec = promote.spec;
  container.holder.reset();
  container.life = ++container_life_;
  const InstanceId id = promote.instance;
  const std::uint64_t life = container.life;
  cluster_.world.after(cluster_.world.random.duration(1ms, 6ms), [this, id, life] {
    if (find(id, life)) confirm_running(id, 3ms, cluster_.world.now() + 20s);
  });
}

/// The instance may run as soon as it has its lease (an exclusive one) or at once; then it answers its readiness request.
void Host::confirm_running(const InstanceId& id, nanoseconds took, Instant give_up) {
  Container& container = containers_.at(id);
  const std::uint64_t life = container.life;
  const Instant now = cluster_.world.now();
  if (container.spec.policy.consistency == Consistency::exclusive) {
    if (!container.holder) {
      container.holder.emplace(container.spec.policy.lease);
      obey(id, container.holder->begin(now));
      arm(id);
    }
    if (!container.executing) {
      // Told by the holder in the real thing; the simulation may look again.
      if (now < give_up)
        cluster_.world.after(2ms, [this, id, life, took, give_up] {
          if (find(id, life)) confirm_running(id, took, give_up);
        });
      else if (agent_) {
        agent_->launched(id, fail(Errc::timed_out, "no lease"), now);
        act();
      }
      return;
    }
  } else {
    set_executing(container, true);
  }
  container.report.state = InstanceState::running;
  container.since = now;
  if (!agent_) return;
  agent_->launched(id, agent::Launched{container.report.endpoint, {took, 2ms}}, now);
  act();
}

void Host::side(const agent::Side& side) {
  World& world = cluster_.world;
  const agent::CallId call = side.call;
  const std::uint64_t life = agent_life_;
  auto done = [this, call, life](Result<CallReply> result) {
    if (!agent_ || agent_life_ != life) return;
    agent_->side_done(call, std::move(result), cluster_.world.now());
    act();
  };
  if (const auto* build = std::get_if<BuildCall>(&side.what)) {
    const ImageReport image{.id = build->image, .workload = build->spec.name, .bytes = 1000};
    world.after(world.random.duration(1s, 3s), [this, image, done] {
      if (cluster_.world.random.chance(0.05)) return done(fail(Errc::application, "simulated failure"));
      if (!up_) return;
      images_[image.id] = image;
      done(CallReply{.image = image});
    });
  } else if (const auto* pull = std::get_if<PullCall>(&side.what)) {
    const HostId from(pull->from.address);
    const ImageId image = pull->image;
    world.after(world.random.duration(100ms, 500ms), [this, from, image, done] {
      Host* source = cluster_.host(from);
      const bool there = source && source->up_ && source->images_.contains(image) &&
                         cluster_.world.reaches(from.str(), id_.str()) && cluster_.world.reaches(id_.str(), from.str());
      if (!there) return done(fail(Errc::unavailable, "{} does not send {}", from, image));
      if (!up_) return;
      images_[image] = source->images_.at(image);
      done(CallReply{.image = images_.at(image)});
    });
  } else if (const auto* drop = std::get_if<DropImageCall>(&side.what)) {
    images_.erase(drop->image);
    std::set<ImageId> present;
    for (const auto& [id, report] : images_) present.insert(id);
    agent_->images(present);
    done(CallReply{});
  } else if (const auto* inspect = std::get_if<InspectCall>(&side.what)) {
    auto found = containers_.find(inspect->instance);
    CallReply reply{.instance = inspect->instance};
    if (found != containers_.end())
      reply.state = found->second.executing && !found->second.stalled ? InstanceState::running : InstanceState::frozen;
    done(reply);
  }
}

// ---- the supervisor's shell ----------------------------------------------------------------------------------------

void Host::obey(const InstanceId& id, const lease::Holder::Decision& decision) {
  auto found = containers_.find(id);
  if (found == containers_.end()) return;
  Container& container = found->second;
  const std::uint64_t life = container.life;
  if (decision.freeze || decision.run) {
    set_executing(container, decision.run);
    if (agent_ && container.report.state != InstanceState::starting) agent_->lease_state(id, decision.run, cluster_.world.now());
  }
  if (!decision.send_renewal || !agent_) return;
  const std::uint64_t ticket = *decision.send_renewal;
  const InstanceReport report = container.report;
  cluster_.world.send(id_.str(), "control", [this, report, ticket, life] {
    cluster_.control.renew(report.workload, report.id, report.epoch, [this, report, ticket, life](Result<milliseconds> ttl) {
      cluster_.world.send("control", id_.str(), [this, report, ticket, life, ttl] {
        Container* still = find(report.id, life);
        if (!still || !still->holder || !agent_) return;
        if (ttl)
          obey(report.id, still->holder->renewed(ticket, *ttl, cluster_.world.now()));
        else if (ttl.error().code == Errc::stale_epoch || ttl.error().code == Errc::not_owner)
          obey(report.id, still->holder->refused());
        arm(report.id);
      });
    });
  });
}

void Host::arm(const InstanceId& id) {
  Container& container = containers_.at(id);
  const Instant when = container.holder->next_deadline();
  if (when == Instant::max()) return;
  const std::uint64_t life = container.life;
  cluster_.world.at(when, [this, id, life, when] {
    Container* still = find(id, life);
    if (!still || !still->holder || still->holder->next_deadline() != when) return;
    obey(id, still->holder->tick(cluster_.world.now()));
    if (find(id, life)) arm(id);
  });
}

// ---- the application -----------------------------------------------------------------------------------------------

void Host::request(gate::RequestId id, InstanceId instance, std::function<void(bool)> connected,
                   std::function<void()> answer, std::function<void()> closed) {
  if (!up_) return;  // silence
  auto found = containers_.find(instance);
  if (found == containers_.end()) return connected(false);
  connected(true);
  auto serve = [this, id, instance, answer, closed] {
    cluster_.world.after(cluster_.world.random.duration(1ms, 20ms), [this, id, instance, answer, closed] {
      auto still = containers_.find(instance);
      if (still == containers_.end()) {
        if (up_) closed();
        return;
      }
      Container& container = still->second;
      auto execute = [this, id, instance, answer] {
        cluster_.ledger.executed(id, instance.str(), containers_.at(instance).report.epoch);
        answer();
      };
      if (container.executing && !container.stalled)
        execute();
      else
        container.backlog.push_back({execute, closed});
    });
  };
  if (found->second.executing && !found->second.stalled)
    serve();
  else
    found->second.backlog.push_back({serve, closed});
}

}  // namespace yado::sim
