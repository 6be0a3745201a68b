#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct ControlHostsTest : ControlCoreTest {};

// ---- hosts ---------------------------------------------------------------------------------------------------------

TEST_F(ControlHostsTest, AHostThatFallsSilentLosesItsWorkloadsAndItsPendingCallsFailAtOnce) {
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

TEST_F(ControlHostsTest, ASilentHostsOwnerIsRelocated) {
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

TEST_F(ControlHostsTest, WhereOnlyTheAgentIsDownASharedOwnerGoesOn) {
  up(spec());
  knock[h1] = ProbeAnswer::refused;
  const auto actions = pass(20'000ms, {h2, h3});
  EXPECT_EQ(std::ranges::count(events(actions), "agent-down"), 1);
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty()) << "its supervisor holds it, and gates see whether it answers";
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_THAT(route().fallback, ::testing::Not(Contains(h1)));
  EXPECT_THAT(events(beats({h1})), Contains("host-answers"));
}

TEST_F(ControlHostsTest, WhereTheAgentIsDownAnExclusiveOwnerIsRaisedElsewhereWhenItsLeaseIsOver) {
  up_with_lease();
  knock[h1] = ProbeAnswer::refused;
  std::vector<Action> actions;
  while (calls<RaiseCall>(actions).empty() && now < Instant(2h)) actions = pass(100ms, {h2, h3});
  EXPECT_EQ(only_call<RaiseCall>(actions).host, h2);
  EXPECT_GE(now, last_renewal + lease_and_grace());
}

TEST_F(ControlHostsTest, AnAgentThatListensAndSaysNothingIsGivenTimeThenTakenForSilent) {
  up(spec());
  knock[h1] = ProbeAnswer::listening;
  const auto actions = silence({h2, h3});
  EXPECT_GT(std::ranges::count_if(all<ProbeHost>(actions), [](const auto& probe) { return probe.host == h1; }), 1);
  EXPECT_THAT(calls<RaiseCall>(actions), SizeIs(1));
}

TEST_F(ControlHostsTest, WhenMostHostsAreSilentNothingIsMovedUntilTheyAnswer) {
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

TEST_F(ControlHostsTest, AnOwnerMissingFromANewerReportIsLostFromAnOlderOneNot) {
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

std::string detail_of_loss(const std::vector<Action>& actions) {
  for (const Emit& emit : all<Emit>(actions))
    if (emit.event.kind == "owner-lost") return emit.event.fields.contains("detail") ? emit.event.fields.at("detail") : "none";
  return "no loss";
}

TEST_F(ControlHostsTest, HowAnOwnerEndedIsSaidWhenItsAgentSaysSo) {
  up(spec());
  core().instance_exited(h1, record().instance, site, now, "exit status 7");
  EXPECT_EQ(detail_of_loss(take()), "exit status 7");
}

TEST_F(ControlHostsTest, HowAnOwnerEndedIsSaidWhenAReportIsFaster) {
  up(spec());
  agent(h1).instances.front().state = InstanceState::exited;
  agent(h1).instances.front().how = "exit status 7";
  agent(h1).sequence += 1;
  EXPECT_EQ(detail_of_loss(beats({h1})), "exit status 7");
}

TEST_F(ControlHostsTest, AnOwnerThatStandsStillIsLeftWhereItIsAndSaidSo) {
  up(spec());
  const auto reported = [&](const std::string& why) {
    agent(h1).instances.front().how = why;
    agent(h1).sequence += 1;
    return beats({h1});
  };
  const auto note = [&] { return core().workloads().front().note; };
  const auto stands = reported("its host's disk is full");
  EXPECT_THAT(events(stands), ::testing::ElementsAre("stands-still"));
  EXPECT_THAT(all<Call>(stands), IsEmpty());
  EXPECT_EQ(note(), "it stands still: its host's disk is full");
  EXPECT_THAT(events(reported("its host's disk is full")), IsEmpty());
  EXPECT_THAT(events(reported("")), ::testing::ElementsAre("goes-on"));
  EXPECT_EQ(note(), "");
}

TEST_F(ControlHostsTest, AReportThatWasOvertakenIsNotLookedAt) {
  up(spec());
  HostReport overtaken = agent(h1);
  overtaken.sequence += 1;
  overtaken.instances.clear();
  beats({h1});
  core().heartbeat(overtaken, now);
  EXPECT_THAT(take(), IsEmpty());
}

TEST_F(ControlHostsTest, WhatAHostWasAskedBeforeItWasStartedAnewIsNotWaitedFor) {
  beats({h1, h2});
  ASSERT_EQ(only_call<RaiseCall>(deploy(spec())).host, h1);
  agent(h1).boot = "boot-2";
  EXPECT_EQ(only_call<RaiseCall>(beats({h1})).host, h2);
}

TEST_F(ControlHostsTest, AHostStartedAnewHasLostItsOwner) {
  up(spec());
  agent(h1) = HostReport{};
  agent(h1).boot = "boot-2";
  agent(h1).host = h1;
  agent(h1).memory_free_bytes = 8u << 30;
  const auto actions = beats({h1});  // its sequence numbers begin anew, too
  EXPECT_THAT(calls<RaiseCall>(actions), SizeIs(1));
}

// ---- retire --------------------------------------------------------------------------------------------------------

TEST_F(ControlHostsTest, TheUnknownTheStoppedAndTheOldAreRetired) {
  agent(h2).instances = {InstanceReport{.id = InstanceId("other.1"),
                                        .workload = WorkloadId("other"),
                                        .epoch = Epoch::make(7, 0),
                                        .state = InstanceState::running}};
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

TEST_F(ControlHostsTest, ABuilderThatNobodyWaitsForIsRetired) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  stands(build.host, build.what.instance, Purpose::builder, Epoch(), InstanceState::starting);
  EXPECT_THAT(beat(build.host).retire, IsEmpty());
  stands(build.host, InstanceId("site.99"), Purpose::builder, Epoch(), InstanceState::starting);
  const auto retire = beat(build.host).retire;
  ASSERT_THAT(retire, SizeIs(1));
  EXPECT_EQ(retire[0].instance, InstanceId("site.99"));
}

TEST_F(ControlHostsTest, ASecondOwnerUnderTheSameEpochIsRetired) {
  up(spec());
  stands(h2, InstanceId("site.77"), Purpose::owner, record().epoch);
  EXPECT_THAT(beat(h2).retire, SizeIs(1));
}

TEST_F(ControlHostsTest, AnImageThatIsNotTheCurrentOneIsDropped) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  agent(h3).images = {ImageReport{.id = ImageId("site-img.0"), .workload = site},
                      ImageReport{.id = ImageId("gone-img.1"), .workload = WorkloadId("gone")}};
  EXPECT_THAT(beat(h3).drop, SizeIs(2));
  agent(h3).images.clear();
  built(build);
  EXPECT_THAT(beat(build.host).drop, IsEmpty());
}

// ---- what gates did without control --------------------------------------------------------------------------------

TEST_F(ControlHostsTest, WhatAGateRaisedWhileControlWasDownIsAdopted) {
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

/// Otherwise it would be refused there, again and again, one epoch higher each time.
TEST_F(ControlHostsTest, AGrantIsNewerThanWhatGatesRaisedInVain) {
  up(spec());
  agent(h2).fences = {{site, Epoch::make(9, 1)}};
  beats({h2});
  EXPECT_EQ(route().host, h1);
  EXPECT_GT(only_call<RaiseCall>(ask(Evidence::silent, {}, h1)).what.epoch, Epoch::make(9, 1));
}

TEST_F(ControlHostsTest, AGrantIsNewerThanWhateverTheAskingGateHasGrantedItself) {
  up(spec());
  EXPECT_GT(only_call<RaiseCall>(ask(Evidence::silent, Epoch::make(5, 1), h2)).what.epoch, Epoch::make(5, 1))
      << "or the gate would turn the answer down";
}

TEST_F(ControlHostsTest, NobodyButControlGrantsAnExclusiveWorkload) {
  up_with_lease();
  stands(h2, InstanceId("site.g1"), Purpose::owner, Epoch::make(2, 1));
  beats({h2});
  EXPECT_EQ(route().host, h1);
  EXPECT_EQ(core().renew(site, InstanceId("site.g1"), Epoch::make(2, 1), now).error().code, Errc::not_owner);
}

}  // namespace
}  // namespace yado::control
