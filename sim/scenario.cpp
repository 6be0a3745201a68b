#include "scenario.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "cluster.hpp"

namespace yado::sim {

Cluster::Cluster(World& w, Ledger& l, std::size_t host_count, std::size_t gate_count)
    : world(w), ledger(l), control(*this) {
  for (std::size_t i = 0; i < host_count; ++i) hosts.push_back(std::make_unique<Host>(*this, host_name(i)));
  for (std::size_t i = 0; i < gate_count; ++i)
    gates.push_back(std::make_unique<Gate>(*this, fmt::format("g{}", i + 1), static_cast<std::uint8_t>(i + 1)));
}

HostId Cluster::host_name(std::size_t index) { return HostId(fmt::format("h{}", index + 1)); }

Host* Cluster::host(const HostId& id) {
  for (auto& host : hosts)
    if (host->id() == id) return host.get();
  return nullptr;
}

namespace {

constexpr nanoseconds faults_from = 8s, faults_until = 40s;
constexpr nanoseconds settled_by = 160s;  ///< faults stop -> everything is as wanted

class Scenario {
 public:
  explicit Scenario(std::uint64_t seed, bool trace)
      : world_(seed), ledger_(world_),
        cluster_(world_, ledger_, static_cast<std::size_t>(world_.random.between(3, 5)),
                 static_cast<std::size_t>(world_.random.between(1, 2))) {
    world_.tracing = trace;
  }

  Outcome run() {
    cluster_.control.start();
    for (auto& host : cluster_.hosts) host->boot();
    const auto count = world_.random.between(1, 3);
    for (int i = 0; i < count; ++i) {
      workloads_.push_back(make_workload(i));
      const WorkloadSpec spec = workloads_.back();
      world_.after(1s, [this, spec] { cluster_.control.deploy(spec); });
    }
    world_.after(3s, [this] { ask(); });
    const auto faults = world_.random.between(1, 8);
    for (int i = 0; i < faults; ++i) world_.after(world_.random.duration(faults_from, faults_until), [this] { fault(); });
    world_.run(Instant(faults_until));
    heal_all();
    world_.run(Instant(settled_by - 30s));
    asking_ = false;
    world_.run(Instant(settled_by));
    check_wanted();
    ledger_.close();
    return {world_.violations(), world_.trace_hash(), ledger_.requests(), ledger_.answered_count(),
            ledger_.unknown_count(), ledger_.refused_count()};
  }

 private:
  WorkloadSpec make_workload(int index) {
    Random& random = world_.random;
    WorkloadSpec spec{.name = WorkloadId(fmt::format("w{}", index))};
    spec.service.hosts = {fmt::format("w{}.test", index)};
    spec.service.port = 80;
    spec.service.ready.start_limit = 20s;
    if (random.chance(0.3)) spec.service.idempotency_header = "idempotency-key";
    if (random.chance(0.4)) {
      spec.policy.consistency = Consistency::exclusive;
      spec.policy.standby = StandbyLevel::cold;
      spec.policy.lease = milliseconds(random.between(500, 4000));
    } else {
      const auto level = random.between(0, 2);
      spec.policy.standby = level == 0 ? StandbyLevel::cold : level == 1 ? StandbyLevel::image : StandbyLevel::frozen;
    }
    if (random.chance(0.25)) spec.policy.lifetime = milliseconds(random.between(500, 5000));
    spec.policy.relocations = 1000;  // the limit has tests of its own; here it would only hide what follows
    return spec;
  }

  void ask() {
    if (!asking_) return;
    Random& random = world_.random;
    const WorkloadSpec& spec = workloads_[static_cast<std::size_t>(random.between(0, std::ssize(workloads_) - 1))];
    auto& gate = *cluster_.gates[static_cast<std::size_t>(random.between(0, std::ssize(cluster_.gates) - 1))];
    const auto kind = random.between(0, 9);
    const gate::Method method = kind < 5 ? gate::Method::safe : kind < 6 ? gate::Method::idempotent : gate::Method::other;
    gate.request(spec.service.hosts.front(), method, random.chance(0.2) && !spec.service.idempotency_header.empty());
    world_.after(random.chance(0.02) ? random.duration(1s, 8s) : random.duration(5ms, 120ms), [this] { ask(); });
  }

  Host& any_host() {
    return *cluster_.hosts[static_cast<std::size_t>(world_.random.between(0, std::ssize(cluster_.hosts) - 1))];
  }

  std::vector<NodeName> others(const NodeName& node) {
    std::vector<NodeName> all{"control"};
    for (auto& gate : cluster_.gates) all.push_back(gate->name());
    for (auto& host : cluster_.hosts) all.push_back(host->id().str());
    std::erase(all, node);
    return all;
  }

  void cut(const NodeName& node, bool in, bool out) {
    for (const NodeName& other : others(node)) {
      if (in) world_.cut(other, node);
      if (out) world_.cut(node, other);
    }
  }

  void heal(const NodeName& node) {
    for (const NodeName& other : others(node)) {
      world_.heal(other, node);
      world_.heal(node, other);
    }
  }

  void fault() {
    Random& random = world_.random;
    Host& host = any_host();
    const NodeName name = host.id().str();
    const nanoseconds lasts = random.duration(200ms, 12s);
    switch (random.between(0, 8)) {
      case 0:
      case 1:  // host silent; its disk may be lost
        world_.trace("FAULT host-silent " + name);
        cut(name, true, true);
        host.die();
        if (random.chance(0.5)) host.wipe_disk();
        world_.after(lasts, [this, &host, name] {
          if (host.up()) return;
          heal(name);
          host.boot();
        });
        return;
      case 2:
        world_.trace("FAULT cut " + name);
        cut(name, true, true);
        world_.after(lasts, [this, name] { heal(name); });
        return;
      case 3: {
        const bool in = random.chance(0.5);
        world_.trace(fmt::format("FAULT one way {} {}", in ? "into" : "out of", name));
        cut(name, in, !in);
        world_.after(lasts, [this, name] { heal(name); });
        return;
      }
      case 4:
        if (host.containers().empty()) return;
        world_.trace("FAULT process " + name);
        return host.kill_container(host.containers().begin()->first);
      case 5:
        world_.trace("FAULT freeze " + name);
        host.stall_containers(true);
        world_.after(lasts, [&host] { host.stall_containers(false); });
        return;
      case 6:
        if (!host.agent_up()) return;
        world_.trace("FAULT agent " + name);
        host.kill_agent();
        world_.after(random.duration(50ms, 3s), [&host] {
          if (host.up() && !host.agent_up()) host.start_agent();
        });
        return;
      case 7:
        if (!cluster_.control.up()) return;
        world_.trace("FAULT control");
        cluster_.control.kill();
        world_.after(lasts, [this] {
          if (!cluster_.control.up()) cluster_.control.start();
        });
        return;
      case 8:
        world_.trace("FAULT control cut off");
        cut("control", true, true);
        world_.after(lasts, [this] { heal("control"); });
        return;
    }
  }

  void heal_all() {
    world_.trace("all faults end");
    for (const NodeName& node : others("")) heal(node);
    for (auto& host : cluster_.hosts) {
      host->stall_containers(false);
      if (!host->up())
        host->boot();
      else if (!host->agent_up())
        host->start_agent();
    }
    if (!cluster_.control.up()) cluster_.control.start();
  }

  /// Promise 4: when faults stop, the cluster reaches what was wanted, redundancy included.
  void check_wanted() {
    for (const auto& view : cluster_.control.core()->workloads()) {
      const auto& record = view.record;
      const std::string name = record.spec.name.str();
      if (!record.spec.policy.lifetime && view.state != RouteState::up)
        world_.violation(fmt::format("promise 4: {} is not up: {}", name, view.note));
      if (record.spec.policy.standby != StandbyLevel::cold && view.image_holders.size() < 2)
        world_.violation(fmt::format("promise 4: {}: the image lies on {} hosts", name, view.image_holders.size()));
      if (record.spec.policy.standby == StandbyLevel::frozen && view.state == RouteState::up &&
          (!view.standby || view.standby_host == record.host))
        world_.violation(fmt::format("promise 4: {} has no standby beside its owner", name));
      int owners = 0, others_of_it = 0;
      for (auto& host : cluster_.hosts)
        for (const auto& [id, container] : host->containers())
          if (container.report.workload == record.spec.name)
            ++(container.report.purpose == Purpose::owner ? owners : others_of_it);
      if (owners > 1) world_.violation(fmt::format("promise 4: {} has {} owners at the end", name, owners));
      if (others_of_it > 1) world_.violation(fmt::format("promise 4: {} has {} standbys at the end", name, others_of_it));
    }
  }

  World world_;
  Ledger ledger_;
  Cluster cluster_;
  std::vector<WorkloadSpec> workloads_;
  bool asking_ = true;
};

}  // namespace

Outcome run_scenario(std::uint64_t seed, bool trace) { return Scenario(seed, trace).run(); }

}  // namespace yado::sim
