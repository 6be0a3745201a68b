#include "ledger.hpp"

#include <fmt/format.h>

namespace yado::sim {

void Ledger::may_run(const WorkloadId& workload, Consistency consistency, const std::string& instance, Epoch epoch) {
  if (consistency != Consistency::exclusive) return;
  auto& live = live_[workload];
  live[instance] = epoch;
  if (live.size() > 1) {
    std::string who;
    for (const auto& [name, e] : live) who += fmt::format(" {}({})", name, e);
    world_.violation(fmt::format("promise 1: two live owners of {}:{}", workload, who));
  }
  Epoch& newest = newest_run_[workload];
  if (epoch < newest)
    world_.violation(fmt::format("promise 1: {} runs under {} after {} had run", instance, epoch, newest));
  newest = std::max(newest, epoch);
}

void Ledger::stopped(const WorkloadId& workload, const std::string& instance) { live_[workload].erase(instance); }

void Ledger::raise_began(const WorkloadId& workload, Epoch epoch, const std::string& host_and_boot) {
  auto& under_way = raises_[{workload, epoch.granter()}];
  under_way[epoch] = host_and_boot;
  if (under_way.size() > 1)
    world_.violation(fmt::format("single flight: {} is being raised under {} and {} at once", workload,
                                 under_way.begin()->first, under_way.rbegin()->first));
}

void Ledger::raise_ended(const WorkloadId& workload, Epoch epoch) { raises_[{workload, epoch.granter()}].erase(epoch); }

void Ledger::host_given_up(int granter, const std::string& host_and_boot) {
  for (auto& [key, under_way] : raises_)
    if (key.second == granter)
      std::erase_if(under_way, [&](const auto& raise) { return raise.second == host_and_boot; });
}

void Ledger::granter_died(int granter) {
  std::erase_if(raises_, [&](const auto& entry) { return entry.first.second == granter; });
}

void Ledger::asked(gate::RequestId request, const WorkloadId& workload, gate::Method method, bool has_key) {
  requests_[request] = Request{workload, method, has_key};
}

void Ledger::executed(gate::RequestId id, const std::string& instance, Epoch epoch) {
  Request& request = requests_.at(id);
  request.carried_out[instance] = epoch;
  if (++request.executions > 1 && request.method == gate::Method::other && !request.has_key)
    world_.violation(fmt::format("promise 3: request {} took effect {} times, last in {} ({})", id, request.executions,
                                 instance, epoch));
  if (request.refusal == gate::Outcome::none)
    world_.violation(fmt::format("promise 3: request {} took effect after its client was told that it had not", id));
}

void Ledger::answered(gate::RequestId id, const std::string& gate, const std::string& instance) {
  Request& request = requests_.at(id);
  const auto carried_out = request.carried_out.find(instance);
  if (carried_out == request.carried_out.end())
    return world_.violation(fmt::format("promise 3: request {} was answered by {} without having been carried out there", id, instance));
  const Epoch epoch = carried_out->second;
  Epoch& newest = newest_answer_[{gate, request.workload}];
  if (epoch < newest)
    world_.violation(fmt::format("promise 3: {} passed on an answer of {} under {} after one under {}", gate,
                                 request.workload, epoch, newest));
  newest = std::max(newest, epoch);
  if (request.told) world_.violation(fmt::format("promise 3: request {} was answered twice", id));
  request.told = true;
  ++answered_;
}

void Ledger::refused(gate::RequestId id, gate::Outcome outcome, const std::string& why) {
  Request& request = requests_.at(id);
  if (request.told) world_.violation(fmt::format("promise 3: request {} was answered twice ({})", id, why));
  if (outcome == gate::Outcome::none && request.executions > 0)
    world_.violation(fmt::format("promise 3: request {} was said not to have taken effect, but did ({})", id, why));
  request.told = true;
  request.refusal = outcome;
  ++(outcome == gate::Outcome::unknown ? unknown_ : refused_);
}

void Ledger::close() {
  for (const auto& [id, request] : requests_)
    if (!request.told) world_.violation(fmt::format("promise 3: request {} of {} was lost in silence", id, request.workload));
}

}  // namespace yado::sim
