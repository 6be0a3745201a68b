#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct ControlSleepTest : ControlCoreTest {};
struct ControlRestartTest : ControlCoreTest {};

// ---- lifetime ------------------------------------------------------------------------------------------------------

TEST_F(ControlSleepTest, ItSleepsOnlyWhenEveryGateIsIdle) {
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

TEST_F(ControlSleepTest, WithoutALifetimeItNeverSleeps) {
  core().gates({"g1"});
  up(spec());
  core().idle("g1", site, record().epoch, true, now);
  EXPECT_THAT(all<Call>(take()), IsEmpty());
}

TEST_F(ControlSleepTest, ASleeperIsKeptAndRaisedWhereItSleeps) {
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

TEST_F(ControlSleepTest, ASleepCallThatWasLostIsMadeGood) {
  core().gates({"g1"});
  up(on_demand());
  core().idle("g1", site, record().epoch, true, now);
  const auto stop = only_call<StopCall>(take());
  EXPECT_THAT(beat(h1).retire, IsEmpty()) << "it is on its way";
  failed(stop.id, Errc::timed_out);
  EXPECT_THAT(beat(h1).retire, SizeIs(1)) << "it runs although nobody is routed to it";
}

TEST_F(ControlSleepTest, ASilentHostsOnDemandOwnerIsRaisedByTheNextRequestOnly) {
  up(on_demand());
  EXPECT_THAT(calls<RaiseCall>(silence({h2, h3})), IsEmpty());
  EXPECT_EQ(only_call<RaiseCall>(ask(Evidence::silent, {}, h1)).host, h2);
}

// ---- control restarts ----------------------------------------------------------------------------------------------

TEST_F(ControlRestartTest, AfterARestartWhatIsUpStaysUp) {
  up(spec());
  const Route before = route();
  restart();
  EXPECT_EQ(route().state, RouteState::up) << "before any agent spoke";
  EXPECT_EQ(route().endpoint, before.endpoint);
  EXPECT_THAT(all<Call>(pass(3000ms, {h1, h2, h3})), IsEmpty());
  EXPECT_EQ(route().epoch, before.epoch);
}

TEST_F(ControlRestartTest, NothingIsRebuiltBeforeEveryAgentHasSpoken) {
  pulled(only_call<PullCall>(built(only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image))))));
  restart();
  EXPECT_THAT(all<Call>(beats({h1})), IsEmpty()) << "the owner's host speaks first, and holds no image";
  EXPECT_THAT(all<Call>(pass(3000ms, {h1, h2, h3})), IsEmpty());
}

TEST_F(ControlRestartTest, HostsOfOwnersAreKnownBeforeTheySpeak) {
  up(spec());
  restart();
  ASSERT_THAT(core().hosts(), SizeIs(1));
  EXPECT_EQ(core().hosts()[0].report.host, h1);
  EXPECT_FALSE(core().hosts()[0].alive);
}

TEST_F(ControlRestartTest, AHostThatDiedWhileControlWasDownIsNoticed) {
  up(spec());
  restart();
  const auto raise = only_call<RaiseCall>(silence({h2, h3}));
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.epoch, Epoch::make(2, 0));
}

TEST_F(ControlRestartTest, ARaiseWhoseAnswerCameToNobodyIsAdopted) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  stands(h1, raise.what.instance, Purpose::owner, raise.what.epoch);
  restart();
  EXPECT_THAT(calls<RaiseCall>(pass(3000ms, {h1, h2})), IsEmpty());
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_EQ(route().epoch, raise.what.epoch);
}

TEST_F(ControlRestartTest, AThawWhoseAnswerCameToNobodyIsAdoptedUnderTheStandbysName) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  stands(h1, InstanceId("site.standby"), Purpose::owner, raise.what.epoch);
  restart();
  EXPECT_THAT(calls<RaiseCall>(pass(3000ms, {h1, h2})), IsEmpty());
  EXPECT_EQ(record().instance, InstanceId("site.standby"));
}

TEST_F(ControlRestartTest, ARaiseThatNeverLeftIsDoneAgainUnderANewEpoch) {
  beats({h1, h2});
  const auto raise = only_call<RaiseCall>(deploy(spec()));
  restart();
  EXPECT_GT(only_call<RaiseCall>(pass(3000ms, {h1, h2})).what.epoch, raise.what.epoch);
}

TEST_F(ControlRestartTest, ARestartedControlAssumesThatItRenewedTheLeaseJustBefore) {
  up_with_lease();
  restart();
  renew();  // the owner itself goes on
  const Instant died = now;
  std::vector<Action> actions;
  while (calls<RaiseCall>(actions).empty() && now < died + 1h) actions = pass(100ms, {h2, h3});
  EXPECT_GE(now - died, lease_and_grace());
}

TEST_F(ControlRestartTest, WhatWasStoppedStaysStopped) {
  up(spec());
  ASSERT_TRUE(core().stop(site, now));
  take();
  restart();
  EXPECT_THAT(calls<RaiseCall>(pass(3000ms, {h1, h2, h3})), IsEmpty());
  EXPECT_EQ(route().state, RouteState::stopped);
}

}  // namespace
}  // namespace yado::control
