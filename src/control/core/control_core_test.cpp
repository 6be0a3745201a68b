#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

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

TEST_F(ControlCoreTest, WhoIsAskedToLookIsNotWaitedForWhenAGateFindsHisHostSilent) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  EXPECT_EQ(raise.host, h2);
  EXPECT_THAT(done(look.id, CallReply{.state = InstanceState::running}), IsEmpty()) << "of an owner that is over";
  const auto actions = raised(raise);
  EXPECT_TRUE(answer_to(last_ask, actions).route);
  EXPECT_TRUE(answer_to(last_ask - 1, actions).route);
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

TEST_F(ControlCoreTest, WhoIsAskedToLookAndIsDueHimselfIsNotWaitedFor) {
  up(spec());
  const auto look = only_call<InspectCall>(ask(Evidence::unresponsive, {}, h1));
  knock[h1] = ProbeAnswer::listening;  // the whole host is frozen; its kernel goes on answering
  std::vector<Action> actions;
  while (all<ProbeHost>(actions).empty()) actions = pass(100ms, {h2, h3});
  EXPECT_EQ(only_call<RaiseCall>(actions).host, h2);
  EXPECT_THAT(calls<RaiseCall>(done(look.id, CallReply{.state = InstanceState::running})), IsEmpty());
}

TEST_F(ControlCoreTest, WhoIsDueIsNotAskedToLook) {
  up(spec());
  knock[h1] = ProbeAnswer::listening;
  while (all<ProbeHost>(pass(100ms, {h2, h3})).empty()) {}
  const auto actions = ask(Evidence::unresponsive, {}, h1);
  EXPECT_THAT(calls<InspectCall>(actions), IsEmpty());
  EXPECT_EQ(only_call<RaiseCall>(actions).host, h2);
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

}  // namespace
}  // namespace yado::control
