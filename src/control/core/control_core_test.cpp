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
  std::map<HostId, ProbeAnswer> knock;  ///< how a host answers that sends no heart-beat: not at all, if not said
  AskId last_ask = 0;
  Instant last_renewal{};
  std::map<WorkloadId, Record> disk;  ///< what was persisted

  ControlCore& core() { return *made; }

  /// What the core wants done, probes answered. Holds for every test: a raise leaves only after what it says is durable.
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

  /// Lets time go by until all hosts but `speaking` have been found silent; how long that takes is the detector's affair.
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
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  ASSERT_TRUE(core().remove(site, now));
  take();
  failed(build.id);
  const auto again = raised(only_call<RaiseCall>(deploy(spec(Consistency::shared, StandbyLevel::image))));
  EXPECT_THAT(calls<BuildCall>(again), SizeIs(1));
}

// ---- questions of gates --------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, AStaleQuestionGetsThePresentRoute) {
  up(spec());
  const auto actions = ask(Evidence::silent, Epoch());
  EXPECT_EQ(answer_to(last_ask, actions).route->host, h1);
  EXPECT_THAT(all<Call>(actions), IsEmpty()) << "what it saw fail was an owner before this one";
}

TEST_F(ControlCoreTest, ManyQuestionsAreOneGrant) {
  up(spec());
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  EXPECT_EQ(raise.host, h2) << "not on the suspect";
  EXPECT_THAT(calls<RaiseCall>(ask(Evidence::silent, {}, h1)), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(ask(Evidence::refused, {}, h1)), IsEmpty());
  const auto actions = raised(raise);
  for (AskId question = last_ask - 2; question <= last_ask; ++question)
    EXPECT_EQ(answer_to(question, actions).route->host, h2);
  EXPECT_EQ(record().epoch, Epoch::make(2, 0));
}

TEST_F(ControlCoreTest, QuestionsAboutWhatIsNotThereOrIsStoppedAreRefused) {
  EXPECT_EQ(answer_to(1, ask(Evidence::silent, Epoch())).route.error().code, Errc::not_found);
  up(spec());
  ASSERT_TRUE(core().stop(site, now));
  take();
  const auto actions = ask(Evidence::silent);
  EXPECT_EQ(answer_to(last_ask, actions).route.error().code, Errc::conflict);
}

TEST_F(ControlCoreTest, ASlowOwnerIsLookedAtAndLeftAlone) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  EXPECT_EQ(look.host, h1);
  ask(Evidence::unresponsive, {}, h1);
  const auto actions = done(look.id, CallReply{.state = InstanceState::running});
  EXPECT_EQ(answer_to(last_ask, actions).route.error().code, Errc::conflict);
  EXPECT_EQ(answer_to(last_ask - 1, actions).route.error().code, Errc::conflict);
  EXPECT_THAT(all<Call>(actions), IsEmpty());
}

TEST_F(ControlCoreTest, AnOwnerThatIsFoundFrozenIsRaisedElsewhere) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  EXPECT_EQ(only_call<RaiseCall>(done(look.id, CallReply{.state = InstanceState::frozen})).host, h2);
}

TEST_F(ControlCoreTest, AnOwnerThatIsFoundDeadMayBeRaisedWhereItWas) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  EXPECT_EQ(only_call<RaiseCall>(done(look.id, CallReply{.state = InstanceState::exited})).host, h1);
}

TEST_F(ControlCoreTest, WhatALookFindsDoesNotRaiseWhatWasStoppedMeanwhile) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  ASSERT_TRUE(core().stop(site, now));
  take();
  EXPECT_THAT(calls<RaiseCall>(done(look.id, CallReply{.state = InstanceState::exited})), IsEmpty());
  EXPECT_EQ(route().state, RouteState::stopped);
}

TEST_F(ControlCoreTest, AQuestionDuringALookThatWasOvertakenIsAnswered) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  core().instance_exited(h1, record().instance, site, now);  // its supervisor was faster
  raised(only_call<RaiseCall>(take()));
  auto actions = ask(Evidence::silent, {}, h1);
  const AskId late = last_ask;
  std::ranges::move(failed(look.id, Errc::timed_out), std::back_inserter(actions));
  for (const auto& raise : calls<RaiseCall>(actions)) std::ranges::move(raised(raise), std::back_inserter(actions));
  EXPECT_TRUE(answered(late, actions));
}

TEST_F(ControlCoreTest, RelocationsAreLimitedAndTheLimitIsASlidingWindow) {
  WorkloadSpec wanted = spec();
  wanted.policy.relocations = 2;
  up(wanted);
  for (int i = 0; i < 2; ++i) {
    raised(only_call<RaiseCall>(ask(Evidence::silent, {}, record().host)));
    pass(1000ms, {h1, h2, h3});
  }
  const auto actions = ask(Evidence::silent, {}, record().host);
  EXPECT_EQ(answer_to(last_ask, actions).route.error().code, Errc::rate_limited);
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_EQ(route().state, RouteState::up) << "suspicion alone takes nothing away";
  pass(wanted.policy.relocations_per, {h1, h2, h3});
  EXPECT_THAT(calls<RaiseCall>(ask(Evidence::silent, {}, record().host)), SizeIs(1));
}

TEST_F(ControlCoreTest, LooksThatFindItRunningUseUpNoRelocation) {
  WorkloadSpec wanted = spec();
  wanted.policy.relocations = 2;
  up(wanted);
  for (int i = 0; i < 5; ++i) {
    const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
    done(look.id, CallReply{.state = InstanceState::running});
  }
  EXPECT_THAT(calls<RaiseCall>(ask(Evidence::silent, {}, h1)), SizeIs(1));
}

// ---- failures of raises --------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, ARaiseThatFailsGoesToTheNextHostUnderANewEpoch) {
  beats({h1, h2, h3});
  const auto first = only_call<RaiseCall>(deploy(spec()));
  const auto second = only_call<RaiseCall>(failed(first.id));
  EXPECT_EQ(second.host, h2);
  EXPECT_GT(second.what.epoch, first.what.epoch);
  const auto late = failed(first.id);  // the same answer again
  EXPECT_THAT(late, IsEmpty());
  EXPECT_TRUE(answer_to(last_ask, raised(second)).route);
}

TEST_F(ControlCoreTest, AHostThatHasSeenAHigherEpochIsAskedAgainUnderAStillHigherOne) {
  beats({h1});
  const auto first = only_call<RaiseCall>(deploy(spec()));
  const auto second = only_call<RaiseCall>(failed(first.id, Errc::stale_epoch));
  EXPECT_EQ(second.host, h1);
  EXPECT_GT(second.what.epoch, first.what.epoch);
}

TEST_F(ControlCoreTest, WhenEveryHostFailedItGivesUpAndPausesLongerEveryTime) {
  beats({h1, h2});
  auto actions = deploy(spec());
  std::vector<milliseconds> pauses;
  for (int round = 0; round < 3; ++round) {
    for (int host = 0; host < 2; ++host) actions = failed(only_call<RaiseCall>(actions).id);
    EXPECT_THAT(events(actions), Contains("gave-up"));
    EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
    const Instant since = now;
    while (calls<RaiseCall>(actions).empty() && now < since + 1h) actions = pass(100ms, {h1, h2});
    pauses.push_back(std::chrono::duration_cast<milliseconds>(now - since));
  }
  EXPECT_GE(pauses[0], 1000ms);
  EXPECT_GT(pauses[1], pauses[0]);
  EXPECT_GT(pauses[2], pauses[1]);
}

TEST_F(ControlCoreTest, WhyItGaveUpIsToldAndShown) {
  beats({h1});
  const Answer answer = answer_to(1, failed(only_call<RaiseCall>(deploy(spec())).id));
  EXPECT_THAT(answer.route.error().message, HasSubstr("it said no"));
  EXPECT_EQ(core().workloads().front().note, answer.route.error().message);
}

TEST_F(ControlCoreTest, AMoveGoesToTheNamedHostAndAFailedOneLeavesTheServiceRaised) {
  up(spec());
  core().move(++last_ask, site, h3, now);
  const auto raise = only_call<RaiseCall>(take());
  EXPECT_EQ(raise.host, h3);
  const auto actions = failed(raise.id);
  EXPECT_FALSE(answer_to(last_ask, actions).route) << "it is not where the person wanted it";
  raised(only_call<RaiseCall>(actions));
  EXPECT_EQ(route().state, RouteState::up);
}

TEST_F(ControlCoreTest, AMoveWithoutANamedHostLeavesTheOneItIsOn) {
  up(spec());
  core().move(++last_ask, site, std::nullopt, now);
  EXPECT_EQ(only_call<RaiseCall>(take()).host, h2);
}

// ---- exclusive: fences ---------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, AnExclusiveOwnersLeaseIsWaitedForWhenItsHostIsSilent) {
  up_with_lease();
  std::vector<Action> actions = silence({h2, h3});
  EXPECT_THAT(events(actions), Contains("owner-lost"));
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  const Instant over = last_renewal + lease_and_grace();
  ASSERT_LT(now, over);
  EXPECT_THAT(calls<RaiseCall>(pass(std::chrono::duration_cast<milliseconds>(over - now) - 1ms, {h2, h3})), IsEmpty());
  EXPECT_LE(core().next_deadline(), over) << "the shell is told when to come back";
  actions = pass(1ms, {h2, h3});
  const auto raise = only_call<RaiseCall>(actions);
  ask(Evidence::silent, {}, h1);
  EXPECT_TRUE(answer_to(last_ask, raised(raise)).fenced);
}

TEST_F(ControlCoreTest, AnAcknowledgedStopShortensTheWait) {
  up_with_lease();
  const InstanceId old = record().instance;
  core().move(++last_ask, site, h2, now);
  auto actions = take();
  const auto stop = only_call<StopCall>(actions);
  EXPECT_EQ(stop.host, h1);
  EXPECT_EQ(stop.what.instance, old);
  EXPECT_EQ(stop.what.epoch, Epoch::make(2, 0)) << "under the new right";
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_EQ(only_call<RaiseCall>(done(stop.id, CallReply{})).host, h2);
}

TEST_F(ControlCoreTest, AStopThatIsNotAcknowledgedShortensNothing) {
  up_with_lease();
  core().move(++last_ask, site, h2, now);
  const auto stop = only_call<StopCall>(take());
  EXPECT_THAT(calls<RaiseCall>(failed(stop.id, Errc::timed_out)), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(lease_and_grace() - 100ms, {h1, h2})), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(100ms, {h1, h2})), SizeIs(1));
}

TEST_F(ControlCoreTest, AnExitIsProofAndARefusedConnectionIsNot) {
  up_with_lease();
  const auto refused = ask(Evidence::refused, {}, h1);
  EXPECT_THAT(calls<RaiseCall>(refused), IsEmpty());

  made.emplace(Settings{});
  agents.clear();
  up_with_lease();
  core().instance_exited(h1, record().instance, site, now);
  EXPECT_THAT(calls<RaiseCall>(take()), SizeIs(1));
}

TEST_F(ControlCoreTest, FromTheGrantOnOnlyTheNewEpochGetsALease) {
  up_with_lease();
  const Record old = record();
  core().move(++last_ask, site, h2, now);
  const auto stop = only_call<StopCall>(take());
  EXPECT_EQ(core().renew(site, old.instance, old.epoch, now).error().code, Errc::stale_epoch);
  const auto raise = only_call<RaiseCall>(done(stop.id, CallReply{}));
  EXPECT_TRUE(core().renew(site, raise.what.instance, raise.what.epoch, now)) << "it needs one to become ready";
}

TEST_F(ControlCoreTest, ADeployDuringTheWaitDoesNotTakeTheStopOfTheUnbornForProof) {
  up_with_lease();
  core().move(++last_ask, site, h2, now);
  const auto stop = only_call<StopCall>(take());
  WorkloadSpec changed = spec(Consistency::exclusive);
  changed.container.command = {"serve", "--better"};
  auto actions = deploy(changed);
  // h1 knows nothing of the instance that was to come and says so: the old owner may run on all the same.
  for (const auto& other : calls<StopCall>(actions))
    EXPECT_THAT(calls<RaiseCall>(done(other.id, CallReply{})), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(done(stop.id, CallReply{})), SizeIs(1)) << "this one is proof";
}

TEST_F(ControlCoreTest, AStopDuringTheWaitDoesNotTakeTheStopOfTheUnbornForProof) {
  up_with_lease();
  core().move(++last_ask, site, h2, now);
  take();
  ASSERT_TRUE(core().stop(site, now));
  for (const auto& other : calls<StopCall>(take())) done(other.id, CallReply{});
  auto actions = deploy(spec(Consistency::exclusive));
  for (const auto& other : calls<StopCall>(actions))
    std::ranges::move(done(other.id, CallReply{}), std::back_inserter(actions));
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(lease_and_grace(), {h1, h2, h3})), SizeIs(1));
}

TEST_F(ControlCoreTest, ARestartDuringTheWaitDoesNotTakeTheStopOfTheUnbornForProof) {
  up_with_lease();
  core().move(++last_ask, site, h2, now);
  take();
  restart();
  std::vector<Action> actions = pass(lease_and_grace() - 100ms, {h1, h2, h3});
  for (const auto& other : calls<StopCall>(actions))
    std::ranges::move(done(other.id, CallReply{}), std::back_inserter(actions));
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(1000ms, {h1, h2, h3})), SizeIs(1));
}

TEST_F(ControlCoreTest, AStoppedOwnerThatAcknowledgedItIsRaisedAgainAtOnce) {
  up_with_lease();
  ASSERT_TRUE(core().stop(site, now));
  const auto stop = only_call<StopCall>(take());
  EXPECT_EQ(core().renew(site, stop.what.instance, stop.what.epoch, now).error().code, Errc::not_owner);
  done(stop.id, CallReply{});
  EXPECT_THAT(calls<RaiseCall>(deploy(spec(Consistency::exclusive))), SizeIs(1));
}

// ---- hosts ---------------------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, AHostThatFallsSilentLosesItsWorkloadsAndItsPendingCallsFailAtOnce) {
  beats({h1, h2, h3});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  ASSERT_EQ(raise.host, h1);
  const Instant asked = now;
  const auto actions = silence({h2, h3});
  EXPECT_LT(now - asked, raise.limit) << "long before the call's own limit";
  const auto next = only_call<RaiseCall>(actions);
  EXPECT_EQ(next.host, h2);
  EXPECT_TRUE(answer_to(last_ask, raised(next)).route);
}

TEST_F(ControlCoreTest, ASilentHostsOwnerIsRelocated) {
  up(spec());
  const auto raise = only_call<RaiseCall>(silence({h2, h3}));
  EXPECT_EQ(raise.host, h2);
  // It was only the line: the old owner's host is back before the new one answers.
  EXPECT_THAT(beat(h1).retire, IsEmpty()) << "shared: suspicion is reversible until somebody else serves";
  raised(raise);
  const auto retire = beat(h1).retire;
  ASSERT_THAT(retire, SizeIs(1));
  EXPECT_EQ(retire[0].instance, InstanceId("site.1"));
  EXPECT_EQ(retire[0].epoch, raise.what.epoch);
}

TEST_F(ControlCoreTest, WhereOnlyTheAgentIsDownASharedOwnerGoesOn) {
  up(spec());
  knock[h1] = ProbeAnswer::refused;
  const auto actions = pass(20'000ms, {h2, h3});
  EXPECT_EQ(std::ranges::count(events(actions), "agent-down"), 1);
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty()) << "its supervisor holds it, and gates see whether it answers";
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_THAT(route().fallback, testing::Not(Contains(h1)));
  EXPECT_THAT(events(beats({h1})), Contains("host-answers"));
}

TEST_F(ControlCoreTest, WhereTheAgentIsDownAnExclusiveOwnerIsRaisedElsewhereWhenItsLeaseIsOver) {
  up_with_lease();
  knock[h1] = ProbeAnswer::refused;
  std::vector<Action> actions;
  while (calls<RaiseCall>(actions).empty() && now < Instant(2h)) actions = pass(100ms, {h2, h3});
  EXPECT_EQ(only_call<RaiseCall>(actions).host, h2);
  EXPECT_GE(now, last_renewal + lease_and_grace());
}

TEST_F(ControlCoreTest, AnAgentThatListensAndSaysNothingIsGivenTimeThenTakenForSilent) {
  up(spec());
  knock[h1] = ProbeAnswer::listening;
  const auto actions = silence({h2, h3});
  EXPECT_GT(std::ranges::count_if(all<ProbeHost>(actions), [](const auto& probe) { return probe.host == h1; }), 1);
  EXPECT_THAT(calls<RaiseCall>(actions), SizeIs(1));
}

TEST_F(ControlCoreTest, WhenMostHostsAreSilentNothingIsMovedUntilTheyAnswer) {
  up(spec());
  const auto braked = silence({h3});
  EXPECT_THAT(events(braked), Contains("brake"));
  EXPECT_THAT(calls<RaiseCall>(braked), IsEmpty());
  EXPECT_EQ(route().state, RouteState::up);
  // h2's word ends the brake, and h1 is still silent.
  beats({h2});
  core().tick(now);
  EXPECT_THAT(calls<RaiseCall>(take()), SizeIs(1));
}

TEST_F(ControlCoreTest, AnOwnerMissingFromANewerReportIsLostFromAnOlderOneNot) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  // This report left before the raise was carried out, and comes after its answer.
  HostReport old = agent(h1);
  old.sequence += 3;
  agent(h1).sequence += 5;
  raised(raise);
  core().heartbeat(old, now);
  EXPECT_THAT(all<Call>(take()), IsEmpty());

  EXPECT_THAT(all<Call>(beats({h1})), IsEmpty());
  agent(h1).instances.clear();
  const auto actions = beats({h1});
  EXPECT_THAT(events(actions), Contains("owner-lost"));
  EXPECT_THAT(calls<RaiseCall>(actions), SizeIs(1));
}

TEST_F(ControlCoreTest, AHostStartedAnewHasLostItsOwner) {
  up(spec());
  agent(h1) = HostReport{};
  agent(h1).boot = "boot-2";
  agent(h1).host = h1;
  agent(h1).memory_free_bytes = 8u << 30;
  const auto actions = beats({h1});  // its sequence numbers begin anew, too
  EXPECT_THAT(calls<RaiseCall>(actions), SizeIs(1));
}

// ---- retire --------------------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, TheUnknownTheStoppedAndTheOldAreRetired) {
  agent(h2).instances = {InstanceReport{.id = InstanceId("other.1"), .workload = WorkloadId("other"),
                                        .epoch = Epoch::make(7, 0), .state = InstanceState::running}};
  auto reply = beat(h2);
  ASSERT_THAT(reply.retire, SizeIs(1));
  EXPECT_EQ(reply.retire[0].epoch, Epoch::make(7, 0)) << "an agent refuses a stop that is older than the instance";

  agent(h2).instances.clear();
  up(spec());
  EXPECT_THAT(beat(h1).retire, IsEmpty());
  stands(h2, InstanceId("site.0"), Purpose::owner, Epoch::make(0, 3));
  EXPECT_THAT(beat(h2).retire, SizeIs(1));

  ASSERT_TRUE(core().stop(site, now));
  EXPECT_THAT(beat(h1).retire, SizeIs(1));
}

TEST_F(ControlCoreTest, ABuilderThatNobodyWaitsForIsRetired) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  stands(build.host, build.what.instance, Purpose::builder, Epoch(), InstanceState::starting);
  EXPECT_THAT(beat(build.host).retire, IsEmpty());
  stands(build.host, InstanceId("site.99"), Purpose::builder, Epoch(), InstanceState::starting);
  const auto retire = beat(build.host).retire;
  ASSERT_THAT(retire, SizeIs(1));
  EXPECT_EQ(retire[0].instance, InstanceId("site.99"));
}

TEST_F(ControlCoreTest, ASecondOwnerUnderTheSameEpochIsRetired) {
  up(spec());
  stands(h2, InstanceId("site.77"), Purpose::owner, record().epoch);
  EXPECT_THAT(beat(h2).retire, SizeIs(1));
}

TEST_F(ControlCoreTest, AnImageThatIsNotTheCurrentOneIsDropped) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  agent(h3).images = {ImageReport{.id = ImageId("site-img.0"), .workload = site},
                      ImageReport{.id = ImageId("gone-img.1"), .workload = WorkloadId("gone")}};
  EXPECT_THAT(beat(h3).drop, SizeIs(2));
  agent(h3).images.clear();
  built(build);
  EXPECT_THAT(beat(build.host).drop, IsEmpty());
}

// ---- what gates did without control --------------------------------------------------------------------------------

TEST_F(ControlCoreTest, WhatAGateRaisedWhileControlWasDownIsAdopted) {
  up(spec());
  stands(h2, InstanceId("site.g1"), Purpose::owner, Epoch::make(2, 1), InstanceState::starting);
  beats({h2});
  EXPECT_EQ(route().host, h1) << "not before it answers";
  stands(h2, InstanceId("site.g1"), Purpose::owner, Epoch::make(2, 1));
  const auto actions = beats({h2});
  EXPECT_THAT(all<PushRoutes>(actions), SizeIs(1));
  EXPECT_EQ(route().host, h2);
  EXPECT_EQ(route().epoch, Epoch::make(2, 1));
  EXPECT_EQ(disk[site].epoch, Epoch::make(2, 1));
  EXPECT_THAT(beat(h1).retire, SizeIs(1));
  EXPECT_GT(only_call<RaiseCall>(ask(Evidence::silent, {}, h2)).what.epoch, Epoch::make(2, 1));
}

TEST_F(ControlCoreTest, AGrantIsNewerThanWhateverTheAskingGateHasGrantedItself) {
  up(spec());
  EXPECT_GT(only_call<RaiseCall>(ask(Evidence::silent, Epoch::make(5, 1), h2)).what.epoch, Epoch::make(5, 1))
      << "or the gate would turn the answer down";
}

TEST_F(ControlCoreTest, NobodyButControlGrantsAnExclusiveWorkload) {
  up_with_lease();
  stands(h2, InstanceId("site.g1"), Purpose::owner, Epoch::make(2, 1));
  beats({h2});
  EXPECT_EQ(route().host, h1);
  EXPECT_EQ(core().renew(site, InstanceId("site.g1"), Epoch::make(2, 1), now).error().code, Errc::not_owner);
}

// ---- images --------------------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, AnImageIsBuiltBesideTheOwnerCopiedAndAcknowledgedOnce) {
  auto actions = up(spec(Consistency::shared, StandbyLevel::image));
  const auto build = only_call<BuildCall>(actions);
  EXPECT_NE(build.host, record().host);
  actions = built(build);
  const auto pull = only_call<PullCall>(actions);
  EXPECT_EQ(pull.what.from, agent(build.host).agent);
  EXPECT_NE(pull.host, build.host);
  EXPECT_THAT(events(actions), testing::Not(Contains("image-acknowledged"))) << "one copy survives no host";
  actions = pulled(pull);
  std::ranges::move(pass(2000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_EQ(std::ranges::count(events(actions), "image-acknowledged"), 1);
  EXPECT_THAT(all<Call>(actions), IsEmpty());
}

TEST_F(ControlCoreTest, ALostCopyIsMadeAgain) {
  const auto pull = only_call<PullCall>(built(only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)))));
  pulled(pull);
  beats({h1, h2, h3});
  agent(pull.host).images.clear();
  EXPECT_THAT(calls<PullCall>(beats({pull.host})), SizeIs(1));
}

TEST_F(ControlCoreTest, AnImageIsRebuiltWhenTheSpecChangesOrItIsOld) {
  WorkloadSpec wanted = spec(Consistency::shared, StandbyLevel::image);
  const auto first = only_call<BuildCall>(up(wanted));
  pulled(only_call<PullCall>(built(first)));
  for (auto& [host, report] : agents)
    for (ImageReport& image : report.images) image.age = wanted.policy.image_age;
  const auto second = only_call<BuildCall>(beats({h1, h2, h3}));
  EXPECT_NE(second.what.image, first.what.image);
  built(second);
  EXPECT_EQ(disk[site].image, second.what.image);

  wanted.container.command = {"serve", "--better"};
  const auto third = raised(only_call<RaiseCall>(deploy(wanted)));
  EXPECT_THAT(calls<BuildCall>(third), IsEmpty()) << "one operation at a time: the copy is under way";
  EXPECT_THAT(calls<BuildCall>(pass(2000ms, {h1, h2, h3})), IsEmpty());
}

TEST_F(ControlCoreTest, ABuildThatFailsIsTriedAgainLaterAndOnAnotherHost) {
  const auto first = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  EXPECT_THAT(calls<BuildCall>(failed(first.id)), IsEmpty());
  const auto second = only_call<BuildCall>(pass(1100ms, {h1, h2, h3}));
  EXPECT_NE(second.host, first.host);
  EXPECT_NE(second.what.image, first.what.image) << "a name is never given twice";
}

TEST_F(ControlCoreTest, WithAnImageOnTheHostItIsWhatIsRaised) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  built(build);
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  EXPECT_EQ(raise.host, build.host);
  EXPECT_EQ(raise.what.image, build.what.image);
}

TEST_F(ControlCoreTest, HostsWhereCheckpointsDoNotWorkHoldNoImage) {
  agent(h2).checkpoint_works = false;
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  EXPECT_EQ(build.host, h3);
  EXPECT_EQ(only_call<PullCall>(built(build)).host, h1);
}

TEST_F(ControlCoreTest, AnExclusiveWorkloadIsNeverStartedTwiceForTheSakeOfAnImage) {
  auto actions = up(spec(Consistency::exclusive, StandbyLevel::frozen));
  std::ranges::move(pass(3000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_THAT(all<Call>(actions), IsEmpty());
}

// ---- frozen standbys -----------------------------------------------------------------------------------------------

struct StandbyTest : ControlCoreTest {
  /// An owner on h1, its image, and the standby that is prepared from it.
  Made<PrepareCall> wanted(const WorkloadSpec& wanted = spec(Consistency::shared, StandbyLevel::frozen)) {
    auto actions = up(wanted);
    EXPECT_THAT(calls<PrepareCall>(actions), IsEmpty()) << "it waits for the image";
    return only_call<PrepareCall>(built(only_call<BuildCall>(actions)));
  }
};

TEST_F(StandbyTest, IsPreparedFromTheImageNotBesideTheOwner) {
  const auto prepare = wanted();
  EXPECT_EQ(prepare.what.image, disk[site].image);
  EXPECT_NE(prepare.host, record().host);
  prepared(prepare);
  EXPECT_EQ(disk[site].standby, prepare.what.instance);
  EXPECT_THAT(beat(prepare.host).retire, IsEmpty());
  EXPECT_EQ(route().fallback.front(), prepare.host) << "gates without control thaw it";
  EXPECT_EQ(only_call<RaiseCall>(ask(Evidence::silent, {}, h1)).host, prepare.host);
}

TEST_F(StandbyTest, IsRenewedByAgeAndTheOldOneGoesOnlyWhenTheNewOneStands) {
  const auto old = wanted();
  prepared(old);
  std::ranges::find(agent(old.host).instances, old.what.instance, &InstanceReport::id)->age = spec().policy.frozen_age;
  auto reply = beat(old.host);
  const auto renewed = only_call<PrepareCall>(take());
  EXPECT_THAT(reply.retire, IsEmpty());
  EXPECT_THAT(beat(old.host).retire, IsEmpty());
  prepared(renewed);
  reply = beat(old.host);
  ASSERT_THAT(reply.retire, SizeIs(1));
  EXPECT_EQ(reply.retire[0].instance, old.what.instance);
}

TEST_F(StandbyTest, ThatWasThawedIsTheOwnerAndANewOneIsPreparedElsewhere) {
  const auto prepare = wanted();
  prepared(prepare);
  beats({h1, h2, h3});
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  const auto& thawed = stands(raise.host, prepare.what.instance, Purpose::owner, raise.what.epoch);
  done(raise.id, reply_of(raise.host, thawed, Way::frozen));
  EXPECT_EQ(record().instance, prepare.what.instance) << "it keeps its name";
  EXPECT_FALSE(record().standby);
  EXPECT_THAT(beat(raise.host).retire, IsEmpty());
}

TEST_F(StandbyTest, ThatDiedIsReplaced) {
  const auto prepare = wanted();
  prepared(prepare);
  std::erase_if(agent(prepare.host).instances, [&](const auto& known) { return known.id == prepare.what.instance; });
  core().instance_exited(prepare.host, prepare.what.instance, site, now);
  const auto actions = take();
  EXPECT_THAT(events(actions), Contains("standby-lost"));
  beat(prepare.host);
  auto later = take();
  EXPECT_EQ(calls<PrepareCall>(actions).size() + calls<PrepareCall>(later).size(), 1u);
}

TEST_F(StandbyTest, WhereCheckpointsDoNotWorkItIsStartedThenFrozen) {
  for (const HostId& host : {h1, h2}) agent(host).checkpoint_works = false;
  const auto prepare =
      only_call<PrepareCall>(up(spec(Consistency::shared, StandbyLevel::frozen), {h1, h2}));
  EXPECT_EQ(prepare.host, h2);
  EXPECT_FALSE(prepare.what.image);
}

// ---- lifetime ------------------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, ItSleepsOnlyWhenEveryGateIsIdle) {
  core().gates({"g1", "g2"});
  up(on_demand());
  const Epoch epoch = record().epoch;
  core().idle("g1", site, epoch, true, now);
  EXPECT_THAT(all<Call>(take()), IsEmpty());
  core().idle("g1", site, epoch, false, now);
  core().idle("g2", site, epoch, true, now);
  EXPECT_THAT(all<Call>(take()), IsEmpty()) << "g1 was asked again";
  core().idle("g1", site, Epoch(), true, now);
  EXPECT_THAT(all<Call>(take()), IsEmpty()) << "it speaks of an owner before this one";
  core().idle("g1", site, epoch, true, now);
  const auto actions = take();
  EXPECT_EQ(only_call<StopCall>(actions).host, h1);
  EXPECT_EQ(route().state, RouteState::asleep);
  EXPECT_EQ(disk[site].phase, OwnerPhase::absent);
  EXPECT_THAT(calls<RaiseCall>(pass(5000ms, {h1, h2, h3})), IsEmpty()) << "nobody asks for it";
  EXPECT_THAT(calls<RaiseCall>(ask(Evidence::asleep)), SizeIs(1));
}

TEST_F(ControlCoreTest, WithoutALifetimeItNeverSleeps) {
  core().gates({"g1"});
  up(spec());
  core().idle("g1", site, record().epoch, true, now);
  EXPECT_THAT(all<Call>(take()), IsEmpty());
}

TEST_F(ControlCoreTest, ASleeperIsKeptAndRaisedWhereItSleeps) {
  core().gates({"g1"});
  WorkloadSpec wanted = on_demand();
  wanted.policy.standby = StandbyLevel::frozen;
  wanted.policy.placement = {h3, h2, h1};
  up(wanted);
  ASSERT_EQ(record().host, h3);
  core().idle("g1", site, record().epoch, true, now);
  const auto sleep = only_call<SleepCall>(take());
  stands(h3, sleep.what.instance, Purpose::owner, sleep.what.epoch, InstanceState::frozen);
  done(sleep.id, CallReply{});
  EXPECT_THAT(beat(h3).retire, IsEmpty());
  EXPECT_EQ(only_call<RaiseCall>(ask(Evidence::asleep)).host, h3);
}

TEST_F(ControlCoreTest, ASleepCallThatWasLostIsMadeGood) {
  core().gates({"g1"});
  up(on_demand());
  core().idle("g1", site, record().epoch, true, now);
  const auto stop = only_call<StopCall>(take());
  EXPECT_THAT(beat(h1).retire, IsEmpty()) << "it is on its way";
  failed(stop.id, Errc::timed_out);
  EXPECT_THAT(beat(h1).retire, SizeIs(1)) << "it runs although nobody is routed to it";
}

TEST_F(ControlCoreTest, ASilentHostsOnDemandOwnerIsRaisedByTheNextRequestOnly) {
  up(on_demand());
  EXPECT_THAT(calls<RaiseCall>(silence({h2, h3})), IsEmpty());
  EXPECT_EQ(only_call<RaiseCall>(ask(Evidence::silent, {}, h1)).host, h2);
}

// ---- control restarts ----------------------------------------------------------------------------------------------

TEST_F(ControlCoreTest, AfterARestartWhatIsUpStaysUp) {
  up(spec());
  const Route before = route();
  restart();
  EXPECT_EQ(route().state, RouteState::up) << "before any agent spoke";
  EXPECT_EQ(route().endpoint, before.endpoint);
  EXPECT_THAT(all<Call>(pass(3000ms, {h1, h2, h3})), IsEmpty());
  EXPECT_EQ(route().epoch, before.epoch);
}

TEST_F(ControlCoreTest, AHostThatDiedWhileControlWasDownIsNoticed) {
  up(spec());
  restart();
  const auto raise = only_call<RaiseCall>(silence({h2, h3}));
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.epoch, Epoch::make(2, 0));
}

TEST_F(ControlCoreTest, ARaiseWhoseAnswerCameToNobodyIsAdopted) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  stands(h1, raise.what.instance, Purpose::owner, raise.what.epoch);
  restart();
  EXPECT_THAT(calls<RaiseCall>(pass(3000ms, {h1, h2})), IsEmpty());
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_EQ(route().epoch, raise.what.epoch);
}

TEST_F(ControlCoreTest, AThawWhoseAnswerCameToNobodyIsAdoptedUnderTheStandbysName) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  stands(h1, InstanceId("site.standby"), Purpose::owner, raise.what.epoch);
  restart();
  EXPECT_THAT(calls<RaiseCall>(pass(3000ms, {h1, h2})), IsEmpty());
  EXPECT_EQ(record().instance, InstanceId("site.standby"));
}

TEST_F(ControlCoreTest, ARaiseThatNeverLeftIsDoneAgainUnderANewEpoch) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  restart();
  EXPECT_GT(only_call<RaiseCall>(pass(3000ms, {h1, h2})).what.epoch, raise.what.epoch);
}

TEST_F(ControlCoreTest, ARestartedControlAssumesThatItRenewedTheLeaseJustBefore) {
  up_with_lease();
  restart();
  renew();  // the owner itself goes on
  const Instant died = now;
  std::vector<Action> actions;
  while (calls<RaiseCall>(actions).empty() && now < died + 1h) actions = pass(100ms, {h2, h3});
  EXPECT_GE(now - died, lease_and_grace());
}

TEST_F(ControlCoreTest, WhatWasStoppedStaysStopped) {
  up(spec());
  ASSERT_TRUE(core().stop(site, now));
  take();
  restart();
  EXPECT_THAT(calls<RaiseCall>(pass(3000ms, {h1, h2, h3})), IsEmpty());
  EXPECT_EQ(route().state, RouteState::stopped);
}

}  // namespace
}  // namespace yado::control
