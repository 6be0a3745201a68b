#pragma once
// A simulated cluster: the daemons' own cores (control, agents, gates, lease holders), joined by a simulated network and
// driven by simulated containers. What stands here is only what the shells do in the real thing.

#include <deque>
#include <memory>
#include <optional>

#include "agent/core/agent_core.hpp"
#include "control/core/control_core.hpp"
#include "gate/core/scheduler.hpp"
#include "ledger.hpp"
#include "lease/holder.hpp"
#include "world.hpp"

namespace yado::sim {

class Cluster;

/// A supervisor with its container: it lives on when its agent dies.
struct Container {
  InstanceReport report;
  WorkloadSpec spec;
  std::optional<lease::Holder> holder;  ///< of an exclusive owner
  bool executing = false;  ///< its processes are thawed
  bool stalled = false;    ///< by the freeze fault: executing, but nothing happens
  Instant since{};
  std::uint64_t life = 0;  ///< distinguishes timers of this container from those of a namesake
  struct Waiting {
    std::function<void()> go_on, closed;
  };
  std::deque<Waiting> backlog;  ///< connections that the kernel accepted meanwhile
};

class Host {
 public:
  Host(Cluster& cluster, HostId id);

  void boot();        ///< machine comes up, empty but for its disk
  void die();         ///< everything in it is gone at once
  void start_agent();
  void kill_agent();
  void kill_container(InstanceId id);  ///< the application's processes die; the supervisor tells
  void stall_containers(bool stalled);

  /// A request arrives at a published port.
  void request(gate::RequestId id, InstanceId instance, std::function<void(bool accepted)> connected,
               std::function<void()> answer, std::function<void()> closed);
  void call(const NodeName& from, AgentCall call, std::function<void(Result<CallReply>)> reply);

  const HostId& id() const { return id_; }
  bool up() const { return up_; }
  bool agent_up() const { return agent_ != nullptr; }
  const std::map<InstanceId, Container>& containers() const { return containers_; }
  const std::map<ImageId, ImageReport>& disk() const { return images_; }
  void wipe_disk() { images_.clear(); }

 private:
  void act();
  void heartbeat();
  void launch(const agent::Launch& launch);
  void promote(const agent::Promote& promote);
  void side(const agent::Side& side);
  void remove(const InstanceId& id, bool tell_agent);
  void obey(const InstanceId& id, const lease::Holder::Decision& decision);
  void arm(const InstanceId& id);
  void set_executing(Container& container, bool executing);
  void confirm_running(const InstanceId& id, nanoseconds took, Instant give_up);
  Container* find(const InstanceId& id, std::uint64_t life);

  Cluster& cluster_;
  HostId id_;
  bool up_ = false;
  std::uint64_t boots_ = 0;
  std::uint64_t agent_life_ = 0;
  std::uint64_t container_life_ = 0;
  std::unique_ptr<agent::AgentCore> agent_;
  agent::CallId last_call_ = 0;
  std::map<agent::CallId, std::function<void(Result<CallReply>)>> replies_;
  std::map<InstanceId, Container> containers_;
  // The disk: survives agent and host.
  std::map<WorkloadId, Epoch> fences_;
  std::map<WorkloadId, WorkloadSpec> specs_;
  std::map<ImageId, ImageReport> images_;
};

class Control {
 public:
  explicit Control(Cluster& cluster) : cluster_(cluster) {}
  void start();
  void kill();
  bool up() const { return core_ != nullptr; }
  control::ControlCore* core() { return core_.get(); }
  std::uint64_t life() const { return life_; }

  void deploy(WorkloadSpec spec);
  void heartbeat(const HostReport& report, std::function<void(control::HeartbeatReply)> reply);
  void exited(const HostId& host, const InstanceId& instance, const WorkloadId& workload);
  void renew(const WorkloadId& workload, const InstanceId& instance, Epoch epoch,
             std::function<void(Result<milliseconds>)> reply);
  void ask(const gate::Ask& ask, std::function<void(Result<Route>, bool)> reply);
  void idle(const NodeName& gate, const gate::ReportIdle& report);
  void act();

 private:
  void tick();
  void push();

  Cluster& cluster_;
  std::unique_ptr<control::ControlCore> core_;
  std::uint64_t life_ = 0;
  control::AskId last_ask_ = 0;
  std::map<control::AskId, std::function<void(Result<Route>, bool)>> asks_;
  std::map<WorkloadId, control::Record> disk_;
  std::map<HostId, std::string> boots_;  ///< what the core believes of each host, for the ledger
  Instant armed_{};
};

class Gate {
 public:
  Gate(Cluster& cluster, NodeName name, std::uint8_t granter);
  void request(const std::string& host_name, gate::Method method, bool has_key);
  void routes(const RouteTable& table);
  gate::Scheduler& core() { return core_; }
  void act();
  const NodeName& name() const { return name_; }

 private:
  void tick();
  void forward(const gate::Forward& forward);
  void control_seen();

  Cluster& cluster_;
  NodeName name_;
  gate::Scheduler core_;
  Instant armed_{};
  Instant control_heard_{};
  std::map<gate::RequestId, int> attempt_;
};

class Cluster {
 public:
  Cluster(World& world, Ledger& ledger, std::size_t hosts, std::size_t gates);

  World& world;
  Ledger& ledger;
  Control control;
  std::vector<std::unique_ptr<Host>> hosts;
  std::vector<std::unique_ptr<Gate>> gates;
  gate::RequestId last_request = 0;

  Host* host(const HostId& id);
  static HostId host_name(std::size_t index);
};

}  // namespace yado::sim
