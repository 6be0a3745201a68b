// What the gate knows of hosts and routes, and the passing of time.
#include "gate/core/scheduler.hpp"

#include <algorithm>

#include "detect/brake.hpp"

namespace yado::gate {
namespace {

// A lost packet is not a death: three probes, the second and third with twice the time of the one before.
constexpr int probes_per_check = 3;
// Until an answer time was learnt an application gets a second; what is learnt may shorten that to a quarter.
constexpr detect::RttEstimator::Bounds response_bounds{.unknown = 1s, .least = 250ms, .most = 30s};
constexpr nanoseconds longest_quiet = 1s;

}  // namespace

// ---- hosts ---------------------------------------------------------------------------------------------------------

void Scheduler::host_heard(const HostId& id, Instant now) {
  auto found = hosts_.find(id);
  if (found == hosts_.end()) return;
  Host& host = found->second;
  host.last_heard = now;
  host.tries = 0;
  host.quiet = nanoseconds(0);
  if (!host.suspect) return;
  host.suspect = false;
  report("host-answers", {}, id, {});
  // A wrong suspicion: who was held for it goes on where it stands. Control's answer, if any, is adopted as it comes.
  for (auto& [name, workload] : workloads_) {
    workload.in_vain.until = Instant{};  // it may be the one that can
    if (workload.route.host != id || workload.route.state != RouteState::up || !workload.holding_since) continue;
    if (workload.relocation && workload.route.consistency == Consistency::exclusive) continue;
    release(name, workload, false, now);
  }
}

void Scheduler::probe(const HostId& id, Host& host, Instant now) {
  host.token = ++last_token_;
  host.probe_sent = now;
  host.next_probe = now + host.rtt.timeout() * (1 << std::min(host.tries, probes_per_check - 1));
  ++host.tries;
  actions_.push_back(Probe{id, host.probe_at, host.token});
}

void Scheduler::probe_answered(const HostId& id, std::uint64_t token, Instant now) {
  auto found = hosts_.find(id);
  if (found == hosts_.end()) return;
  Host& host = found->second;
  if (token == host.token && host.tries > 0) host.rtt.measured(now - host.probe_sent);
  const nanoseconds quiet = host.quiet;
  const bool was_suspect = host.suspect;
  host_heard(id, now);
  if (was_suspect) check_workloads(now);  // the brake may be off by this
  // It lives and is only slow: ask less often.
  host.quiet = std::min(2 * std::max(quiet, 2 * host.rtt.timeout()), longest_quiet);
}

void Scheduler::suspect(const HostId& id, Host& host, Instant now) {
  host.suspect = true;
  // Is it the host or is it me? The others are asked too, so that the brake can tell. Those that were suspected before
  // may be back: they are asked so slowly otherwise that the brake would hold for their sake.
  for (auto& [other_id, other] : hosts_) {
    if (other_id == id) continue;
    if (other.suspect) {
      probe(other_id, other, now);
      other.next_probe = now + longest_quiet;
    } else if (other.tries == 0 && now - other.last_heard > other.rtt.timeout()) {
      probe(other_id, other, now);
    }
  }
  for (auto& [name, workload] : workloads_)
    if (workload.route.host == id && workload.route.state == RouteState::up && workload.in_hand > 0)
      relocate(name, workload, Evidence::silent, id, now);
}

bool Scheduler::braked() const {
  const auto silent = std::ranges::count_if(hosts_, [](const auto& entry) { return entry.second.suspect; });
  return detect::brake(static_cast<std::size_t>(silent), hosts_.size());
}

// ---- control -------------------------------------------------------------------------------------------------------

void Scheduler::routes(RouteTable table, Instant now) {
  for (const HostAddress& address : table.hosts) {
    Host& host = hosts_.try_emplace(address.host, Host{.rtt = detect::RttEstimator(probe_bounds)}).first->second;
    host.probe_at = address.agent;
  }
  std::erase_if(hosts_, [&](const auto& entry) {
    return entry.second.in_hand == 0 &&
           std::ranges::find(table.hosts, entry.first, &HostAddress::host) == table.hosts.end();
  });
  names_.clear();
  std::vector<WorkloadId> gone;
  for (const auto& [id, workload] : workloads_)
    if (std::ranges::find(table.routes, id, &Route::workload) == table.routes.end()) gone.push_back(id);
  for (const WorkloadId& id : gone) {
    for (RequestId request : requests_of(id)) {
      const InHand& in_hand = requests_.at(request);
      const bool untouched = in_hand.stage == Stage::held || in_hand.stage == Stage::connecting;
      if (in_hand.stage != Stage::held) actions_.push_back(Abandon{request, in_hand.attempt});
      refuse(request, untouched ? 404 : 502, untouched ? Outcome::none : Outcome::unknown,
             fmt::format("{} was removed", id));
    }
    workloads_.erase(id);
  }
  for (Route& route : table.routes) {
    const WorkloadId id = route.workload;
    for (const std::string& name : route.service.hosts) names_[name] = id;
    auto [entry, made] = workloads_.try_emplace(id, Workload{.response = detect::RttEstimator(response_bounds)});
    Workload& workload = entry->second;
    const Epoch before = workload.route.epoch;
    const bool was_up = workload.route.state == RouteState::up;
    if (made) workload.last_used = now;
    trust_new_owner(workload, route, now);
    adopt(id, workload, route, now);
    if (workload.route.state == RouteState::stopped) {
      workload.relocation.reset();
      workload.holding_since.reset();
      refuse_held(id, 503, fmt::format("{} is stopped", id));
    } else if (workload.route.state == RouteState::up) {
      // A new owner ends any relocation under way; the old one ends it only when nobody suspects it.
      if (workload.route.epoch > before || !was_up) workload.relocation.reset();
      if (!workload.relocation) release(id, workload, false, now);
    }
  }
  table_ = std::move(table);
}

void Scheduler::control_reachable(bool reachable, Instant now) {
  if (control_up_ == reachable) return;
  control_up_ = reachable;
  report(reachable ? "control-answers" : "control-silent", {}, {}, {});
  for (auto& [id, workload] : workloads_) {
    if (!workload.relocation) continue;
    // What was asked before is lost: ask again when it is back.
    if (!reachable) {
      workload.relocation->asked_control = false;
      workload.relocation->unanswered -= std::exchange(workload.relocation->of_control, 0);
    }
    pursue(WorkloadId(id), workload, now);
  }
}

// ---- time ----------------------------------------------------------------------------------------------------------

void Scheduler::tick(Instant now) {
  check_hosts(now);
  check_workloads(now);
}

void Scheduler::check_hosts(Instant now) {
  for (auto& [id, host] : hosts_) {
    if (host.tries > 0) {
      if (now < host.next_probe) continue;
      if (host.tries >= probes_per_check) {
        if (!host.suspect) suspect(id, host, now);
        host.tries = probes_per_check;  // go on asking, ever more slowly, until it answers
        probe(id, host, now);
        host.next_probe = now + longest_quiet;
        continue;
      }
      probe(id, host, now);
    } else if (host.in_hand > 0 && !host.suspect) {
      const nanoseconds quiet = std::max(host.quiet, 2 * host.rtt.timeout());
      if (now >= std::max(host.last_heard, host.waiting_since) + quiet) probe(id, host, now);
    }
  }
}

void Scheduler::check_workloads(Instant now) {
  for (auto& [id, workload] : workloads_) {
    const Route& route = workload.route;
    const auto host = hosts_.find(route.host);
    const bool host_suspect = host != hosts_.end() && host->second.suspect;
    if (workload.holding_since && now >= *workload.holding_since + 2 * route.service.ready.start_limit) {
      workload.holding_since.reset();
      workload.relocation.reset();
      refuse_held(id, 503, fmt::format("{} could not be raised in time", id));
    }
    if (route.state == RouteState::up && !workload.relocation) {
      const nanoseconds patience = std::max(workload.patience, workload.response.timeout());
      if (host_suspect && workload.in_hand > 0)
        relocate(id, workload, Evidence::silent, route.host, now);  // the brake may be off by now
      else if (workload.unanswered > 0 && now >= workload.last_progress + patience)
        relocate(id, workload, Evidence::unresponsive, route.host, now);
    }
    if (route.lifetime && route.state == RouteState::up && workload.in_hand == 0 && !workload.idle_reported &&
        now >= workload.last_used + *route.lifetime) {
      workload.idle_reported = true;
      actions_.push_back(ReportIdle{id, route.epoch, true});
    }
  }
}

Instant Scheduler::next_deadline() const {
  Instant next = Instant::max();
  for (const auto& [id, host] : hosts_) {
    if (host.tries > 0)
      next = std::min(next, host.next_probe);
    else if (host.in_hand > 0 && !host.suspect)
      next =
          std::min(next, std::max(host.last_heard, host.waiting_since) + std::max(host.quiet, 2 * host.rtt.timeout()));
  }
  for (const auto& [id, workload] : workloads_) {
    const Route& route = workload.route;
    if (workload.holding_since) next = std::min(next, *workload.holding_since + 2 * route.service.ready.start_limit);
    if (route.state != RouteState::up || workload.relocation) continue;
    // While its host is suspected (and the brake on), the host's probes say when to look again.
    const auto host = hosts_.find(route.host);
    if (workload.unanswered > 0 && (host == hosts_.end() || !host->second.suspect))
      next = std::min(next, workload.last_progress + std::max(workload.patience, workload.response.timeout()));
    if (route.lifetime && workload.in_hand == 0 && !workload.idle_reported)
      next = std::min(next, workload.last_used + *route.lifetime);
  }
  return next;
}

}  // namespace yado::gate
