#pragma once
// What the simulation knows and no daemon does: who really runs, what really took effect, what every client was told.
// The promises of docs/architecture.md are checked here.

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "gate/core/scheduler.hpp"
#include "model/cluster.hpp"
#include "world.hpp"

namespace yado::sim {

class Ledger {
 public:
  explicit Ledger(World& world) : world_(world) {}

  // Promise 1: never two live owners of an exclusive workload.
  void may_run(const WorkloadId& workload, Consistency consistency, const std::string& instance, Epoch epoch);
  void stopped(const WorkloadId& workload, const std::string& instance);

  // One relocation at a time: two raises under way by the same granter, on hosts that it believes to be alive, are a
  // lost single flight.
  void raise_began(const WorkloadId& workload, Epoch epoch, const std::string& host_and_boot);
  /// The granter gave up on whatever it had asked of that boot of a host.
  void host_given_up(int granter, const std::string& host_and_boot);
  void raise_ended(const WorkloadId& workload, Epoch epoch);
  /// What it had under way is nobody's flight any more.
  void granter_died(int granter);

  // Promise 3: answered once, or refused with a reason that is true.
  void asked(gate::RequestId request, const WorkloadId& workload, gate::Method method, bool has_key);
  void executed(gate::RequestId request, const std::string& instance, Epoch epoch);
  /// The route points only at an owner: what a gate passes on never comes from an older epoch than what it passed on
  /// before.
  void answered(gate::RequestId request, const std::string& gate, const std::string& instance);
  void refused(gate::RequestId request, gate::Outcome outcome, const std::string& why);
  /// When all is over: nobody was left without a word.
  void close();

  std::size_t requests() const { return requests_.size(); }
  std::size_t answered_count() const { return answered_; }
  std::size_t unknown_count() const { return unknown_; }
  std::size_t refused_count() const { return refused_; }

 private:
  struct Request {
    WorkloadId workload;
    gate::Method method;
    bool has_key = false;
    int executions = 0;
    std::map<std::string, Epoch> carried_out;  ///< by instance, under which epoch: an attempt that was given up may be carried out late
    bool told = false;
    std::optional<gate::Outcome> refusal;
  };
  World& world_;
  std::map<WorkloadId, std::map<std::string, Epoch>> live_;  // of exclusive workloads
  std::map<WorkloadId, Epoch> newest_run_;
  std::map<std::pair<std::string, WorkloadId>, Epoch> newest_answer_;
  std::map<std::pair<WorkloadId, int>, std::map<Epoch, std::string>> raises_;
  std::map<gate::RequestId, Request> requests_;
  std::size_t answered_ = 0, unknown_ = 0, refused_ = 0;
};

}  // namespace yado::sim
