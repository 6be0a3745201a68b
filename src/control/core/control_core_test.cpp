#include "control/core/control_core.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace yado::control {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

const WorkloadId site("site");
const HostId h1("h1"), h2("h2"), h3("h3");

WorkloadSpec spec(Consistency consistency = Consistency::shared, StandbyLevel standby = StandbyLevel::cold) {
  WorkloadSpec made;
  made.name = site;
  made.container.root = "/roots/site";
  made.container.command = {"serve"};
  made.service.hosts = {"site.test"};
  made.policy.consistency = consistency;
  made.policy.standby = standby;
  return made;
}
WorkloadSpec on_demand() {
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
Answer answer_to(AskId ask, const std::vector<Action>& actions) {
  for (const Answer& answer : all<Answer>(actions))
    if (answer.ask == ask) return answer;
  ADD_FAILURE() << "question " << ask << " is not answered";
  return {ask, fail(Errc::internal, "not answered"), false};
}
bool answered(AskId ask, const std::vector<Action>& actions) {
  return std::ranges::any_of(all<Answer>(actions), [&](const Answer& answer) { return answer.ask == ask; });
}
std::vector<std::string> events(const std::vector<Action>& actions) {
  std::vector<std::string> kinds;
  for (const Emit& emit : all<Emit>(actions)) kinds.push_back(emit.event.kind);
  return kinds;
}

/// The core among agents that say what the test wants them to say.
struct ControlCoreTest : testing::Test {
  std::optional<ControlCore> made{std::in_place, Settings{}};
  Instant now{1h};
  std::map<HostId, HostReport> agents;
  AskId last_ask = 0;
  std::map<WorkloadId, Record> disk;  ///< what was persisted

  ControlCore& core() { return *made; }

  /// What the core wants done. Holds for every test: a raise leaves only after what it says is durable.
  std::vector<Action> take() {
    std::vector<Action> actions = core().take();
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
      report.memory_free_bytes = 8u << 30;
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
        InstanceReport{.id = id, .workload = site, .purpose = purpose, .epoch = epoch, .state = state,
                       .endpoint = {agent(host).agent.address, static_cast<std::uint16_t>(30'000 + instances.size())}});
  }
  CallReply reply_of(const HostId& host, const InstanceReport& instance, Way way = Way::cold) {
    return {.instance = instance.id, .endpoint = instance.endpoint, .way = way, .sequence = agent(host).sequence};
  }
  /// The agent carries the raise out and says so.
  std::vector<Action> raised(const Made<RaiseCall>& raise) {
    const auto& instance = stands(raise.host, raise.what.instance, Purpose::owner, raise.what.epoch);
    return done(raise.id, reply_of(raise.host, instance));
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
    ASSERT_TRUE(core().renew(site, record().instance, record().epoch, now));
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

// ---- deploy --------------------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, ADeployIsGrantedRaisedAndAnsweredWhenItIsReady) {
  beats({h1, h2});
  const auto actions = deploy(spec());
  const auto raise = only_call<RaiseCall>(actions);  // take() holds: durable first
  EXPECT_EQ(raise.host, h1);
  EXPECT_EQ(raise.what.epoch, Epoch::make(1, 0));
  EXPECT_FALSE(answered(last_ask, actions)) << "nobody is told before the owner answers";
  EXPECT_EQ(route().state, RouteState::raising);

  const Answer answer = answer_to(last_ask, raised(raise));
  ASSERT_TRUE(answer.route);
  EXPECT_EQ(answer.route->state, RouteState::up);
  EXPECT_EQ(answer.route->host, h1);
  EXPECT_EQ(disk[site].phase, OwnerPhase::up);
}

TEST_F(ControlCoreTest, ADeployWithoutAHostIsRefusedAndCarriedOutWhenOneJoins) {
  EXPECT_EQ(answer_to(1, deploy(spec())).route.error().code, Errc::unavailable);
  EXPECT_THAT(calls<RaiseCall>(pass(1500ms, {h1})), SizeIs(1));
}

TEST_F(ControlCoreTest, TheSameDeployAgainChangesNothing) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  EXPECT_THAT(calls<RaiseCall>(deploy(spec())), IsEmpty()) << "it is being raised already";
  const auto actions = raised(raise);
  EXPECT_TRUE(answer_to(1, actions).route);
  EXPECT_TRUE(answer_to(2, actions).route);
  const auto again = deploy(spec());
  EXPECT_TRUE(answer_to(last_ask, again).route);
  EXPECT_THAT(all<Call>(again), IsEmpty());
}

TEST_F(ControlCoreTest, AChangedPolicyKeepsTheInstance) {
  up(spec());
  const InstanceId before = record().instance;
  WorkloadSpec changed = spec();
  changed.policy.relocations = 3;
  const auto actions = deploy(changed);
  EXPECT_TRUE(answer_to(last_ask, actions).route);
  EXPECT_THAT(all<Call>(actions), IsEmpty());
  EXPECT_THAT(all<PushRoutes>(actions), SizeIs(1)) << "gates hold themselves to the limit, too";
  EXPECT_EQ(route().relocations, 3u);
  EXPECT_EQ(record().instance, before);
  EXPECT_EQ(disk[site].spec, changed);
}

TEST_F(ControlCoreTest, AChangedContainerIsANewInstanceUnderANewEpoch) {
  up(spec());
  WorkloadSpec changed = spec();
  changed.container.command = {"serve", "--better"};
  const auto raise = only_call<RaiseCall>(deploy(changed));
  EXPECT_EQ(raise.what.epoch, Epoch::make(2, 0));
  EXPECT_EQ(raise.what.spec, changed);
  EXPECT_EQ(disk[site].revision, 2u);
}

TEST_F(ControlCoreTest, RemovedAndDeployedAgainItGoesOnCountingEpochs) {
  up(spec());
  const Record before = record();
  ASSERT_TRUE(core().remove(site, now));
  take();
  EXPECT_TRUE(disk[site].removed);
  EXPECT_THAT(core().routes().routes, IsEmpty());
  EXPECT_THAT(core().workloads(), IsEmpty());
  restart();
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  EXPECT_GT(raise.what.epoch, before.epoch);
  EXPECT_NE(raise.what.instance, before.instance);
  EXPECT_GT(disk[site].revision, before.revision) << "images of the removed one are of another revision";
}

TEST_F(ControlCoreTest, ACallAnsweredAfterARemoveDoesNotBlockWhatIsDeployedNext) {
  up(spec(Consistency::shared, StandbyLevel::image));
  const auto build = only_call<BuildCall>(beats({h2}).empty() ? take() : std::vector<Action>{});
  (void)build;
}

}  // namespace
}  // namespace yado::control
