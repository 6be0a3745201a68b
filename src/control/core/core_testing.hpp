#pragma once
// ControlCore among agents that do what a test says: what every test of its decisions stands on.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "control/core/control_core.hpp"

namespace yado::control::testing_core {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

inline const WorkloadId site("site");
inline const HostId h1("h1"), h2("h2"), h3("h3");

inline WorkloadSpec spec(Consistency consistency = Consistency::shared, StandbyLevel standby = StandbyLevel::cold) {
  WorkloadSpec made;
  made.name = site;
  made.container.root = "/roots/site";
  made.container.command = {"serve"};
  made.service.hosts = {"site.test"};
  made.policy.consistency = consistency;
  made.policy.standby = standby;
  return made;
}
inline WorkloadSpec on_demand() {
  WorkloadSpec made = spec();
  made.policy.lifetime = 1000ms;
  return made;
}

/// A call that the core wants made, with its kind.
template <class T>
struct Made {
  CallId id = 0;
  HostId host;
  T what;
  nanoseconds limit{0};
};

template <class T>
std::vector<T> all(const std::vector<Action>& actions) {
  std::vector<T> found;
  for (const Action& action : actions)
    if (const T* it = std::get_if<T>(&action)) found.push_back(*it);
  return found;
}
template <class T>
std::vector<Made<T>> calls(const std::vector<Action>& actions) {
  std::vector<Made<T>> found;
  for (const Call& call : all<Call>(actions))
    if (const T* what = std::get_if<T>(&call.call)) found.push_back({call.id, call.host, *what, call.limit});
  return found;
}
template <class T>
Made<T> only_call(const std::vector<Action>& actions) {
  const auto found = calls<T>(actions);
  if (found.size() != 1) {
    ADD_FAILURE() << found.size() << " calls of this kind";
    return {};
  }
  return found.front();
}
inline Answer answer_to(AskId ask, const std::vector<Action>& actions) {
  for (const Answer& answer : all<Answer>(actions))
    if (answer.ask == ask) return answer;
  ADD_FAILURE() << "question " << ask << " is not answered";
  return {ask, fail(Errc::internal, "not answered"), false};
}
inline bool answered(AskId ask, const std::vector<Action>& actions) {
  return std::ranges::any_of(all<Answer>(actions), [&](const Answer& answer) { return answer.ask == ask; });
}
inline std::vector<std::string> events(const std::vector<Action>& actions) {
  std::vector<std::string> kinds;
  for (const Emit& emit : all<Emit>(actions)) kinds.push_back(emit.event.kind);
  return kinds;
}

/// The core among agents that say what the test wants them to say.
struct ControlCoreTest : ::testing::Test {
  std::optional<ControlCore> made{std::in_place, Settings{}};
  Instant now{1h};
  std::map<HostId, HostReport> agents;
  std::map<HostId, ProbeAnswer> knock;  ///< how a host answers that sends no heart-beat: not at all, if not said
  AskId last_ask = 0;
  Instant last_renewal{};
  std::map<WorkloadId, Record> disk;  ///< what was persisted

  ControlCore& core() { return *made; }

  /// What the core wants done, probes answered. Holds for every test: a raise leaves only after what it says is
  /// durable.
  std::vector<Action> take() {
    std::vector<Action> actions = core().take();
    for (std::size_t i = 0; i < actions.size(); ++i)
      if (const ProbeHost* probe = std::get_if<ProbeHost>(&actions[i])) {
        core().host_probed(probe->host, knock[probe->host], now);
        core().tick(now);  // as the shell does after everything it hears
        std::ranges::move(core().take(), std::back_inserter(actions));
      }
    for (const Action& action : actions) {
      if (const Persist* persist = std::get_if<Persist>(&action)) disk[persist->record.spec.name] = persist->record;
      const Call* call = std::get_if<Call>(&action);
      if (const RaiseCall* raise = call ? std::get_if<RaiseCall>(&call->call) : nullptr) {
        const Record& kept = disk[raise->workload];
        EXPECT_EQ(kept.epoch, raise->epoch) << "raised before its epoch was durable";
        EXPECT_EQ(kept.instance, raise->instance);
        EXPECT_EQ(kept.host, call->host);
        EXPECT_EQ(kept.phase, OwnerPhase::raising);
      }
    }
    return actions;
  }

  HostReport& agent(const HostId& host) {
    HostReport& report = agents[host];
    report.host = host;
    if (report.boot.empty()) {
      report.boot = "boot-1";
      report.agent = {"10.0.0." + host.str().substr(1), 7000};
      report.memory_free_bytes = std::uint64_t{8} << 30;
    }
    return report;
  }
  HeartbeatReply beat(const HostId& host) {
    HostReport& report = agent(host);
    report.sequence += 10;
    return core().heartbeat(report, now);
  }
  std::vector<Action> beats(const std::vector<HostId>& hosts) {
    for (const HostId& host : hosts) beat(host);
    return take();
  }
  /// Lets time go by; only `speaking` send heart-beats.
  std::vector<Action> pass(milliseconds time, const std::vector<HostId>& speaking) {
    std::vector<Action> actions;
    for (const Instant end = now + time; now < end;) {
      now = std::min(end, now + 100ms);
      for (const HostId& host : speaking) beat(host);
      core().tick(now);
      std::ranges::move(take(), std::back_inserter(actions));
    }
    return actions;
  }

  /// Lets time go by until all hosts but `speaking` have been found silent; how long that takes is the detector's
  /// affair.
  std::vector<Action> silence(const std::vector<HostId>& speaking) {
    std::vector<Action> actions;
    const auto silent = [&] { return std::ranges::count(events(actions), "host-silent"); };
    while (silent() + std::ssize(speaking) < std::ssize(agents) && now < Instant(2h))
      std::ranges::move(pass(100ms, speaking), std::back_inserter(actions));
    return actions;
  }

  std::vector<Action> deploy(const WorkloadSpec& wanted) {
    core().deploy(++last_ask, wanted, now);
    return take();
  }
  std::vector<Action> ask(Evidence evidence, std::optional<Epoch> observed = {}, const HostId& suspect = {}) {
    core().ask(++last_ask, site, observed.value_or(record().epoch), evidence, suspect, now);
    return take();
  }
  std::vector<Action> done(CallId call, const Result<CallReply>& result) {
    core().call_done(call, result, now);
    return take();
  }
  std::vector<Action> failed(CallId call, Errc code = Errc::application) {
    return done(call, fail(code, "it said no"));
  }

  /// What an agent has and reports from its next heart-beat on.
  InstanceReport& stands(const HostId& host, const InstanceId& id, Purpose purpose, Epoch epoch,
                         InstanceState state = InstanceState::running) {
    auto& instances = agent(host).instances;
    std::erase_if(instances, [&](const InstanceReport& known) { return known.id == id; });
    return instances.emplace_back(
        InstanceReport{.id = id,
                       .workload = site,
                       .purpose = purpose,
                       .epoch = epoch,
                       .state = state,
                       .endpoint = {agent(host).agent.address, static_cast<std::uint16_t>(30'000 + instances.size())}});
  }
  CallReply reply_of(const HostId& host, const InstanceReport& instance, Way way = Way::cold) {
    return {.instance = instance.id, .endpoint = instance.endpoint, .way = way, .sequence = agent(host).sequence};
  }
  /// The agent carries the raise out and says so.
  std::vector<Action> raised(const Made<RaiseCall>& raise, Way way = Way::cold) {
    const auto& instance = stands(raise.host, raise.what.instance, Purpose::owner, raise.what.epoch);
    return done(raise.id, reply_of(raise.host, instance, way));
  }
  std::vector<Action> built(const Made<BuildCall>& build) { return image_at(build.id, build.host, build.what.image); }
  std::vector<Action> pulled(const Made<PullCall>& pull) { return image_at(pull.id, pull.host, pull.what.image); }
  std::vector<Action> image_at(CallId call, const HostId& host, const ImageId& id) {
    const ImageReport image{.id = id, .workload = site, .bytes = 1000};
    agent(host).images.push_back(image);
    return done(call, CallReply{.image = image, .sequence = agent(host).sequence});
  }
  std::vector<Action> prepared(const Made<PrepareCall>& prepare) {
    auto& instance = stands(prepare.host, prepare.what.instance, Purpose::standby, Epoch(), InstanceState::frozen);
    instance.image = prepare.what.image;
    return done(prepare.id, reply_of(prepare.host, instance));
  }

  /// Hosts that report, and an owner that runs (on h1: the first by name).
  std::vector<Action> up(const WorkloadSpec& wanted, const std::vector<HostId>& hosts = {h1, h2, h3}) {
    beats(hosts);
    std::vector<Action> actions = raised(only_call<RaiseCall>(deploy(wanted)));
    EXPECT_EQ(route().state, RouteState::up);
    return actions;
  }
  /// An exclusive owner that holds a lease.
  void up_with_lease(const std::vector<HostId>& hosts = {h1, h2, h3}) {
    up(spec(Consistency::exclusive), hosts);
    renew();
  }
  void renew() {
    ASSERT_TRUE(core().renew(site, record().instance, record().epoch, now));
    last_renewal = now;
  }
  /// Control dies and comes back with what it had written.
  std::vector<Action> restart() {
    std::vector<Record> records;
    for (const auto& [id, kept] : disk) records.push_back(kept);
    made.emplace(Settings{});
    core().recover(records, now);
    return take();
  }

  Route route() {
    for (const Route& route : core().routes().routes)
      if (route.workload == site) return route;
    return {};
  }
  Record record() {
    for (const WorkloadView& view : core().workloads())
      if (view.record.spec.name == site) return view.record;
    return {};
  }
  milliseconds lease_and_grace() {
    const milliseconds lease = spec().policy.lease;
    return lease + lease::grace(lease);
  }
};

}  // namespace yado::control::testing_core
