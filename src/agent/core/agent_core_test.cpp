#include "agent/core/agent_core.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace yado::agent {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const WorkloadId site("site");
const ImageId image("site-img.1");
const InstanceId one("site.1"), two("site.2");

Epoch epoch(std::uint64_t counter) { return Epoch::make(counter, 0); }

WorkloadSpec spec(Consistency consistency = Consistency::shared) {
  WorkloadSpec made;
  made.name = site;
  made.container.command = {"serve"};
  made.policy.consistency = consistency;
  return made;
}

RaiseCall raise_of(const InstanceId& instance, Epoch under, std::optional<ImageId> from = {}) {
  return {.spec = spec(), .workload = site, .instance = instance, .epoch = under, .image = std::move(from)};
}

/// The core with somebody who looks at what it wants done.
struct AgentCoreTest : ::testing::Test {
  AgentCore core;
  Instant now{1h};
  CallId last = 0;

  std::vector<Action> call(const AgentCall& what) {
    core.call(++last, what, now);
    return core.take();
  }
  std::vector<Action> launched(const InstanceId& instance, nanoseconds took = 100ms) {
    core.launched(instance, Launched{{"10.0.0.1", 30'000}, {took, 0ns}}, now);
    return core.take();
  }
  std::vector<Action> failed(const InstanceId& instance, const std::string& why = "it said no") {
    core.launched(instance, fail(Errc::application, "{}", why), now);
    return core.take();
  }
  std::vector<Action> gone(const InstanceId& instance) {
    core.gone(instance, now);
    return core.take();
  }
  /// An owner that runs.
  void up(const InstanceId& instance, Epoch under, WorkloadSpec of = spec()) {
    RaiseCall made = raise_of(instance, under);
    made.spec = std::move(of);
    call(made);
    launched(instance);
  }
  void standby(const InstanceId& instance, Epoch under) {
    call(PrepareCall{spec(), instance, under, {}});
    launched(instance);
  }
  std::vector<InstanceReport> report() {
    std::uint64_t sequence = 0;
    return core.report(sequence, now);
  }
};

template <class T>
std::vector<T> all(const std::vector<Action>& actions) {
  std::vector<T> found;
  for (const Action& action : actions)
    if (const T* it = std::get_if<T>(&action)) found.push_back(*it);
  return found;
}
/// The only one of its kind.
template <class T>
T only(const std::vector<Action>& actions) {
  const std::vector<T> found = all<T>(actions);
  if (found.size() != 1) {
    ADD_FAILURE() << found.size() << " actions of this kind among " << actions.size();
    return T{};
  }
  return found.front();
}
template <class T>
std::size_t place_of(const std::vector<Action>& actions) {
  for (std::size_t i = 0; i < actions.size(); ++i)
    if (std::holds_alternative<T>(actions[i])) return i;
  return actions.size();
}

// ---- the fence -----------------------------------------------------------------------------------------------------

TEST_F(AgentCoreTest, ARaiseUnderAnOldEpochIsRefused) {
  core.recover_fence(site, epoch(7));
  const auto actions = call(raise_of(one, epoch(6)));
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::stale_epoch);
  EXPECT_EQ(core.fence(site), epoch(7));
}

TEST_F(AgentCoreTest, WhoIsNotNewerThanAnInstanceMayNeitherStopNorJudgeIt) {
  core.adopt({.id = one, .workload = site, .epoch = epoch(7), .state = InstanceState::running}, now);
  core.take();
  for (const AgentCall& stale : {AgentCall(StopCall{site, one, epoch(6)}), AgentCall(SleepCall{site, one, epoch(6)}),
                                 AgentCall(InspectCall{site, one, epoch(6)})}) {
    const auto actions = call(stale);
    ASSERT_EQ(actions.size(), 1u) << name_of(stale);
    EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::stale_epoch) << name_of(stale);
  }
}

TEST_F(AgentCoreTest, ANewEpochIsDurableBeforeAnythingIsDoneUnderIt) {
  const auto actions = call(raise_of(one, epoch(3)));
  EXPECT_EQ(only<PersistFence>(actions).epoch, epoch(3));
  EXPECT_LT(place_of<PersistFence>(actions), place_of<Launch>(actions));
  EXPECT_LT(place_of<PersistSpec>(actions), place_of<Launch>(actions));
}

TEST_F(AgentCoreTest, TwoGrantersOfOneCounterAreNeverTheSameEpoch) {
  call(raise_of(one, Epoch::make(3, 2)));
  const auto actions = call(raise_of(two, Epoch::make(3, 1)));
  EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::stale_epoch);
}

TEST_F(AgentCoreTest, ANewEpochEndsTheRaiseOfTheOldOne) {
  call(raise_of(one, epoch(3)));
  const CallId first = last;
  const auto actions = call(raise_of(InstanceId("site.2"), epoch(4)));
  EXPECT_EQ(only<Kill>(actions).instance, one);
  EXPECT_EQ(only<Reply>(actions).call, first);
  EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::stale_epoch);
  EXPECT_THAT(launched(one), IsEmpty()) << "it came up too late to matter";
}

TEST_F(AgentCoreTest, AnAdoptedOwnerSetsTheFence) {
  core.adopt({.id = one, .workload = site, .epoch = epoch(9), .state = InstanceState::running}, now);
  EXPECT_THAT(core.take(), IsEmpty());
  EXPECT_EQ(only<Reply>(call(StopCall{site, one, epoch(8)})).result.error().code, Errc::stale_epoch);
}

// ---- raise ---------------------------------------------------------------------------------------------------------

TEST_F(AgentCoreTest, AWayThatFailsFallsThroughToTheNextAndTheReplySaysWhy) {
  core.images({image});
  EXPECT_EQ(only<Launch>(call(raise_of(one, epoch(1), image))).way, Way::image);
  const auto next = failed(one, "pages-1.img: checksum differs");
  EXPECT_EQ(only<Kill>(next).instance, one);
  const Launch cold = only<Launch>(next);
  EXPECT_EQ(cold.way, Way::cold);
  EXPECT_EQ(cold.image, std::nullopt);
  EXPECT_NE(cold.instance, one) << "the remains of the first may still be on their way out";
  const Reply reply = only<Reply>(launched(cold.instance));
  ASSERT_TRUE(reply.result);
  EXPECT_EQ(reply.result->instance, cold.instance);
  EXPECT_EQ(reply.result->way, Way::cold);
  EXPECT_THAT(reply.result->detail, AllOf(HasSubstr("image"), HasSubstr("checksum differs")));
}

TEST_F(AgentCoreTest, WhenNoWayIsLeftTheErrorNamesEveryWay) {
  core.images({image});
  call(raise_of(one, epoch(1), image));
  const InstanceId second = only<Launch>(failed(one, "torn")).instance;
  const auto actions = failed(second, "no such command");
  const Error error = only<Reply>(actions).result.error();
  EXPECT_EQ(error.code, Errc::application);
  EXPECT_THAT(error.message, AllOf(HasSubstr("image: torn"), HasSubstr("cold: no such command")));
  EXPECT_EQ(only<Kill>(actions).instance, second);
}

TEST_F(AgentCoreTest, AnImageThatIsNotHereIsNotTried) {
  EXPECT_EQ(only<Launch>(call(raise_of(one, epoch(1), image))).way, Way::cold);
}

TEST_F(AgentCoreTest, AFrozenStandbyIsThawedFirstAndKeepsItsName) {
  standby(two, epoch(1));
  core.images({image});
  const auto actions = call(raise_of(one, epoch(2), image));
  EXPECT_EQ(only<Promote>(actions).instance, two);
  EXPECT_EQ(only<Promote>(actions).epoch, epoch(2));
  const Reply reply = only<Reply>(launched(two));
  EXPECT_EQ(reply.result->instance, two);
  EXPECT_EQ(reply.result->way, Way::frozen);
  ASSERT_EQ(report().size(), 1u);
  EXPECT_EQ(report()[0].purpose, Purpose::owner);
  EXPECT_EQ(report()[0].epoch, epoch(2));
}

TEST_F(AgentCoreTest, ABadStandbyCostsOneTry) {
  standby(two, epoch(1));
  core.images({image});
  call(raise_of(one, epoch(2), image));
  const auto next = failed(two);
  EXPECT_EQ(only<Kill>(next).instance, two);
  EXPECT_EQ(only<Launch>(next).way, Way::image);
}

TEST_F(AgentCoreTest, TheWayThatWasSlowerLastTimeIsTriedLater) {
  core.images({image});
  call(raise_of(one, epoch(1), image));
  launched(one, 3s);  // by image
  call(raise_of(two, epoch(2)));
  launched(two, 300ms);  // cold
  EXPECT_EQ(only<Launch>(call(raise_of(InstanceId("site.3"), epoch(3), image))).way, Way::cold);
  EXPECT_EQ(only<Reply>(launched(InstanceId("site.3"), 300ms)).result->detail, "image takes 3000 ms here, cold 300 ms");
}

TEST_F(AgentCoreTest, AnImageThatWasNeverMeasuredIsTriedHoweverFastAColdStartWas) {
  core.images({image});
  call(raise_of(one, epoch(1)));
  launched(one, 20ms);  // cold
  EXPECT_EQ(only<Launch>(call(raise_of(two, epoch(2), image))).way, Way::image);
}

TEST_F(AgentCoreTest, AColdStartThatWasNeverMeasuredIsNotTriedBeforeAnImageThatWorks) {
  core.images({image});
  call(raise_of(one, epoch(1), image));
  launched(one, 70ms);  // by image
  standby(two, epoch(1));
  call(raise_of(two, epoch(2), image));
  launched(two, 2ms);  // frozen
  EXPECT_EQ(only<Launch>(call(raise_of(InstanceId("site.3"), epoch(3), image))).way, Way::image);
}

TEST_F(AgentCoreTest, OneSlowRestoreIsNoVerdict) {
  core.images({image});
  call(raise_of(one, epoch(1)));
  launched(one, 300ms);  // cold
  int raises = 1;
  for (const nanoseconds took : {50ms, 50ms, 400ms}) {
    const InstanceId next(fmt::format("site.{}", ++raises));
    ASSERT_EQ(only<Launch>(call(raise_of(next, epoch(raises), image))).way, Way::image);
    launched(next, took);
  }
  EXPECT_EQ(only<Launch>(call(raise_of(InstanceId("site.9"), epoch(9), image))).way, Way::image);
}

TEST_F(AgentCoreTest, ANewImageIsTriedWhereTheOldOneWasSlow) {
  core.images({image});
  call(raise_of(one, epoch(1)));
  launched(one, 100ms);  // cold
  call(raise_of(two, epoch(2), image));
  launched(two, 3s);  // by image
  const ImageId renewed("site-img.2");
  const Side side = only<Side>(call(BuildCall{spec(), InstanceId("site.3"), epoch(2), renewed}));
  core.side_done(side.call, CallReply{.image = ImageReport{.id = renewed, .workload = site}}, now);
  core.take();
  EXPECT_EQ(only<Launch>(call(raise_of(InstanceId("site.4"), epoch(3), renewed))).way, Way::image);
}

TEST_F(AgentCoreTest, TheSameRaiseTwiceIsOneLaunchAndTwoReplies) {
  call(raise_of(one, epoch(1)));
  EXPECT_THAT(call(raise_of(one, epoch(1))), IsEmpty());
  const auto replies = all<Reply>(launched(one));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_NE(replies[0].call, replies[1].call);
  const Reply later = only<Reply>(call(raise_of(one, epoch(1))));
  EXPECT_EQ(later.result->instance, one) << "it runs already";
  EXPECT_EQ(later.result->endpoint.port, 30'000);
}

TEST_F(AgentCoreTest, TheOldOwnerIsKilledWhenANewOneIsRaisedHere) {
  up(one, epoch(1));
  const auto actions = call(raise_of(two, epoch(2)));
  EXPECT_EQ(only<Kill>(actions).instance, one);
  EXPECT_EQ(only<Launch>(actions).instance, two);
}

TEST_F(AgentCoreTest, OfAnExclusiveWorkloadNothingStartsBeforeTheOldOwnerIsGone) {
  up(one, epoch(1), spec(Consistency::exclusive));
  RaiseCall next = raise_of(two, epoch(2));
  next.spec = spec(Consistency::exclusive);
  const auto actions = call(next);
  EXPECT_EQ(only<Kill>(actions).instance, one);
  EXPECT_THAT(all<Launch>(actions), IsEmpty());
  EXPECT_EQ(only<Launch>(gone(one)).instance, two);
}

TEST_F(AgentCoreTest, OfAnExclusiveWorkloadTheNextWayWaitsForTheEndOfTheFailedOne) {
  core.images({image});
  RaiseCall call_it = raise_of(one, epoch(1), image);
  call_it.spec = spec(Consistency::exclusive);
  call(call_it);
  EXPECT_THAT(all<Launch>(failed(one)), IsEmpty());
  EXPECT_EQ(only<Launch>(gone(one)).way, Way::cold);
}

TEST_F(AgentCoreTest, ANameThatIsStillInUseIsNotGivenAgain) {
  call(raise_of(one, epoch(1)));
  failed(one);  // being killed, not gone
  const Launch again = only<Launch>(call(raise_of(one, epoch(2))));
  EXPECT_NE(again.instance, one);
  gone(one);
  EXPECT_EQ(only<Reply>(launched(again.instance)).result->instance, again.instance);
}

TEST_F(AgentCoreTest, ARaiseWithoutASpecNeedsOneThatIsKnown) {
  RaiseCall bare{.workload = site, .instance = one, .epoch = Epoch::make(5, 1)};
  EXPECT_EQ(only<Reply>(call(bare)).result.error().code, Errc::not_found);
  core.recover_spec(spec());
  bare.epoch = Epoch::make(6, 1);
  EXPECT_EQ(only<Launch>(call(bare)).spec, spec());
}

TEST_F(AgentCoreTest, ARaiseByAGateTakesTheNewestImage) {
  core.recover_spec(spec());
  core.images({image, ImageId("site-img.2")}, {{site, ImageId("site-img.2")}});
  const Launch launch = only<Launch>(call(RaiseCall{.workload = site, .instance = one, .epoch = Epoch::make(5, 1)}));
  EXPECT_EQ(launch.way, Way::image);
  EXPECT_EQ(launch.image, ImageId("site-img.2"));
}

// ---- standbys and sleep --------------------------------------------------------------------------------------------

TEST_F(AgentCoreTest, APrepareThatFailsLeavesNothing) {
  call(PrepareCall{spec(), two, epoch(1), {}});
  const auto actions = failed(two);
  EXPECT_EQ(only<Kill>(actions).instance, two);
  EXPECT_FALSE(only<Reply>(actions).result);
  EXPECT_THAT(gone(two), IsEmpty());
  EXPECT_THAT(report(), IsEmpty());
}

TEST_F(AgentCoreTest, APrepareWithAnImageThatIsNotHereIsRefused) {
  const auto actions = call(PrepareCall{spec(), two, epoch(1), image});
  EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::not_found);
  EXPECT_THAT(all<Launch>(actions), IsEmpty());
}

TEST_F(AgentCoreTest, ThePrepareRepeatedUnderWayIsAnsweredWithTheFirst) {
  call(PrepareCall{spec(), two, epoch(1), {}});
  EXPECT_THAT(call(PrepareCall{spec(), two, epoch(1), {}}), IsEmpty());
  EXPECT_EQ(all<Reply>(launched(two)).size(), 2u);
}

TEST_F(AgentCoreTest, AStandbyBeingPreparedIsNotRaisedButStoppingItAnswersThePrepare) {
  call(PrepareCall{spec(), two, epoch(1), {}});
  const CallId prepare = last;
  EXPECT_EQ(only<Kill>(call(StopCall{site, two, epoch(1)})).instance, two);
  const auto replies = all<Reply>(gone(two));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].call, prepare);
  EXPECT_EQ(replies[0].result.error().code, Errc::canceled);
  EXPECT_TRUE(replies[1].result);
}

TEST_F(AgentCoreTest, ASleeperIsThawedByTheNextRaise) {
  up(one, epoch(1));
  EXPECT_EQ(only<Freeze>(call(SleepCall{site, one, epoch(1)})).instance, one);
  core.frozen(one, {}, now);
  EXPECT_TRUE(only<Reply>(core.take()).result);
  EXPECT_EQ(report().at(0).state, InstanceState::frozen);
  const auto actions = call(raise_of(two, epoch(2)));
  EXPECT_EQ(only<Promote>(actions).instance, one);
  EXPECT_THAT(all<Kill>(actions), IsEmpty());
}

TEST_F(AgentCoreTest, ARaiseWhileTheOwnerFallsAsleepWaitsAndThenThawsIt) {
  up(one, epoch(1));
  call(SleepCall{site, one, epoch(1)});
  EXPECT_THAT(call(raise_of(two, epoch(1))), IsEmpty()) << "'it runs' would be true for some milliseconds only";
  core.frozen(one, {}, now);
  const auto actions = core.take();
  EXPECT_TRUE(only<Reply>(actions).result) << "of the sleep";
  EXPECT_EQ(only<Promote>(actions).instance, one);
}

TEST_F(AgentCoreTest, AFreezeThatFailsUnderARaiseMakesWayForAnotherWay) {
  up(one, epoch(1));
  call(SleepCall{site, one, epoch(1)});
  call(raise_of(two, epoch(2)));
  core.frozen(one, fail(Errc::timed_out, "a task did not stop"), now);
  EXPECT_EQ(only<Kill>(core.take()).instance, one);
  EXPECT_EQ(only<Launch>(gone(one)).instance, two);
}

TEST_F(AgentCoreTest, AStartingInstanceCannotBePutToSleep) {
  call(raise_of(one, epoch(1)));
  const auto actions = call(SleepCall{site, one, epoch(1)});
  EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::conflict);
  EXPECT_THAT(all<Freeze>(actions), IsEmpty());
}

// ---- stop and exit -------------------------------------------------------------------------------------------------

TEST_F(AgentCoreTest, StopIsAnsweredWhenNothingIsLeftAndStoppingNothingAtOnce) {
  EXPECT_TRUE(only<Reply>(call(StopCall{site, one, epoch(1)})).result);
  up(one, epoch(1));
  EXPECT_THAT(all<Reply>(call(StopCall{site, one, epoch(1)})), IsEmpty());
  EXPECT_TRUE(only<Reply>(gone(one)).result);
  EXPECT_THAT(report(), IsEmpty());
}

TEST_F(AgentCoreTest, StoppingARaiseByItsFirstNameStopsTheAttemptUnderWay) {
  core.images({image});
  call(raise_of(one, epoch(1), image));
  const CallId raise = last;
  const InstanceId second = only<Launch>(failed(one)).instance;
  gone(one);
  const auto actions = call(StopCall{site, one, epoch(1)});
  EXPECT_EQ(only<Kill>(actions).instance, second);
  EXPECT_EQ(only<Reply>(actions).call, raise);
  EXPECT_TRUE(only<Reply>(gone(second)).result);
}

TEST_F(AgentCoreTest, AnOwnerThatEndsByItselfIsNewsOnceAndReportedUntilItIsGone) {
  up(one, epoch(1));
  EXPECT_TRUE(core.exited(one, "killed by signal 9", now));
  EXPECT_EQ(only<Kill>(core.take()).instance, one);
  EXPECT_FALSE(core.exited(one, "killed by signal 9", now));
  ASSERT_EQ(report().size(), 1u);
  EXPECT_EQ(report()[0].state, InstanceState::exited);
  EXPECT_EQ(report()[0].how, "killed by signal 9");
  gone(one);
  EXPECT_THAT(report(), IsEmpty());
}

TEST_F(AgentCoreTest, AnInstanceThatStandsStillIsReportedSoUntilItGoesOn) {
  up(one, epoch(1));
  core.stands(one, "its host's disk is full");
  EXPECT_TRUE(report()[0].stands_still());
  EXPECT_EQ(report()[0].how, "its host's disk is full");
  core.stands(one, "");
  EXPECT_FALSE(report()[0].stands_still());
  core.stands(one, "its host's disk is full");
  EXPECT_TRUE(core.exited(one, "killed by signal 9", now));
  core.stands(one, "");
  EXPECT_EQ(report()[0].how, "killed by signal 9");
}

TEST_F(AgentCoreTest, AnExitThatWasAskedForIsNoNews) {
  up(one, epoch(1));
  call(StopCall{site, one, epoch(1)});
  EXPECT_FALSE(core.exited(one, "killed by signal 9", now));
}

TEST_F(AgentCoreTest, AnExitDuringTheStartIsToldByTheLaunch) {
  call(raise_of(one, epoch(1)));
  EXPECT_FALSE(core.exited(one, "killed by signal 9", now));
  EXPECT_THAT(core.take(), IsEmpty());
  EXPECT_FALSE(only<Reply>(failed(one, "exit status 1")).result);
}

TEST_F(AgentCoreTest, AdoptionEndsWhatNobodyWaitsFor) {
  core.adopt({.id = one, .workload = site, .purpose = Purpose::builder, .state = InstanceState::running}, now);
  core.adopt({.id = two, .workload = site, .state = InstanceState::starting}, now);
  core.adopt({.id = InstanceId("site.3"), .workload = site, .purpose = Purpose::standby,
              .state = InstanceState::frozen, .age = 5s}, now);
  const auto kills = all<Kill>(core.take());
  ASSERT_EQ(kills.size(), 2u);
  EXPECT_EQ(kills[0].instance, one);
  EXPECT_EQ(kills[1].instance, two);
  ASSERT_EQ(report().size(), 1u);
  EXPECT_EQ(report()[0].age, 5s);
}

// ---- leases, sides, reports ----------------------------------------------------------------------------------------

TEST_F(AgentCoreTest, AnOwnerFrozenByItsLeaseIsReportedSoAndThawedByARaise) {
  up(one, epoch(1));
  core.lease_state(one, false, now);
  EXPECT_EQ(report().at(0).state, InstanceState::frozen);
  core.lease_state(one, true, now);
  EXPECT_EQ(report().at(0).state, InstanceState::running);
  core.lease_state(one, false, now);
  EXPECT_EQ(only<Promote>(call(raise_of(two, epoch(2)))).instance, one);
}

TEST_F(AgentCoreTest, AStandbyNeverRunsByALease) {
  standby(two, epoch(1));
  core.lease_state(two, true, now);
  EXPECT_EQ(report().at(0).state, InstanceState::frozen);
}

TEST_F(AgentCoreTest, TheSameBuildTwiceIsOneBuild) {
  const BuildCall build{spec(), two, epoch(1), image};
  const Side side = only<Side>(call(build));
  EXPECT_THAT(call(build), IsEmpty());
  core.side_done(side.call, CallReply{.image = ImageReport{.id = image, .workload = site}}, now);
  EXPECT_EQ(all<Reply>(core.take()).size(), 2u);
  EXPECT_EQ(only<Launch>(call(raise_of(one, epoch(1), image))).way, Way::image) << "built here, so it is here";
}

TEST_F(AgentCoreTest, ADroppedImageIsNotRestored) {
  core.images({image});
  const Side side = only<Side>(call(DropImageCall{site, epoch(1), image}));
  core.side_done(side.call, CallReply{}, now);
  core.take();
  EXPECT_EQ(only<Launch>(call(raise_of(one, epoch(1), image))).way, Way::cold);
}

TEST_F(AgentCoreTest, APullBringsTheSpecWithIt) {
  const auto actions = call(PullCall{spec(), epoch(1), image, {"10.0.0.2", 7000}});
  EXPECT_EQ(only<PersistSpec>(actions).spec, spec());
  EXPECT_LT(place_of<PersistSpec>(actions), place_of<Side>(actions));
}

TEST_F(AgentCoreTest, ARaiseUsesTheMemoryServersThatItNamesAndNotThoseOfAnEarlierCall) {
  WorkloadSpec wanted = spec();
  wanted.kind = Kind::vm;
  wanted.vm.split = Split{.local_bytes = 1 << 20, .over = {{.host = HostId("h2"), .address = {}}}};
  call(PullCall{wanted, epoch(1), image, {"10.0.0.2", 7000}});
  for (const std::uint16_t port : {std::uint16_t{7100}, std::uint16_t{7200}}) {
    wanted.vm.split->over[0].address = "10.0.0.2";
    wanted.vm.split->over[0].port = port;
    const auto actions = call(RaiseCall{wanted, site, InstanceId(std::to_string(port)), epoch(port)});
    EXPECT_EQ(only<PersistSpec>(actions).spec.vm.split->over[0].port, port) << "for a raise without control";
    ASSERT_EQ(all<Launch>(actions).size(), 1u);
    EXPECT_EQ(only<Launch>(actions).spec.vm.split->over[0].port, port);
    failed(InstanceId(std::to_string(port)));
  }
}

TEST_F(AgentCoreTest, WhatAMemoryHoldsIsNotGivenUpForAStartThatControlDidNotAskFor) {
  WorkloadSpec wanted = spec();
  wanted.kind = Kind::vm;
  wanted.vm.split = Split{.local_bytes = 1 << 20, .over = {{.host = HostId("h2"), .address = {}}}};
  core.images({image}, {{site, image}});
  EXPECT_EQ(only<Launch>(call(RaiseCall{wanted, site, one, epoch(1), image})).way, Way::image);
  const auto actions = failed(one, "its memory host is dead");
  EXPECT_THAT(all<Launch>(actions), IsEmpty());
  EXPECT_THAT(only<Reply>(actions).result.error().message, HasSubstr("its memory host is dead"));
  // Asked for, it is started.
  EXPECT_EQ(only<Launch>(call(RaiseCall{wanted, site, two, epoch(2), std::nullopt})).way, Way::cold);
  failed(two);
  // By a gate it is raised from what is here, or not at all.
  EXPECT_EQ(only<Launch>(call(RaiseCall{{}, site, InstanceId("site.3"), epoch(3), std::nullopt})).image, image);
  failed(InstanceId("site.3"));
  core.images({});
  EXPECT_THAT(only<Reply>(call(RaiseCall{{}, site, InstanceId("site.4"), epoch(4), std::nullopt})).result.error().message, HasSubstr("only control"));
}

TEST_F(AgentCoreTest, AThawThatFailsIsNotFollowedByAStartThatControlDidNotAskFor) {
  WorkloadSpec wanted = spec();
  wanted.kind = Kind::vm;
  wanted.vm.split = Split{.local_bytes = 1 << 20, .over = {{.host = HostId("h2"), .address = {}}}};
  up(one, epoch(1), wanted);
  call(SleepCall{site, one, epoch(1)});
  core.frozen(one, {}, now);
  core.take();
  const auto promote = only<Promote>(call(RaiseCall{wanted, site, InstanceId("site.3"), epoch(2), std::nullopt}));
  const auto actions = failed(promote.instance, "another main host has this memory");
  EXPECT_THAT(all<Launch>(actions), IsEmpty());
  EXPECT_FALSE(only<Reply>(actions).result);
}

TEST_F(AgentCoreTest, ARaiseThatMemoryServersFindTooLateIsToldSoAndNotTriedInAnotherWay) {
  core.images({image});
  const auto launch = only<Launch>(call(raise_of(one, epoch(1), image)));
  ASSERT_EQ(launch.way, Way::image);
  core.launched(launch.instance, fail(Errc::stale_epoch, "session site is of epoch 2"), now);
  const auto actions = core.take();
  EXPECT_THAT(all<Launch>(actions), IsEmpty());
  EXPECT_EQ(only<Reply>(actions).result.error().code, Errc::stale_epoch);
}

TEST_F(AgentCoreTest, InspectingWhatIsNotHereSaysExitedAtOnce) {
  EXPECT_EQ(only<Reply>(call(InspectCall{site, one, epoch(1)})).result->state, InstanceState::exited);
  up(two, epoch(1));
  EXPECT_EQ(all<Side>(call(InspectCall{site, two, epoch(1)})).size(), 1u);
}

TEST_F(AgentCoreTest, AReplyCarriesTheNumberOfTheLastReportThatCouldNotKnow) {
  core.recover_sequence(1000);
  std::uint64_t first = 0, second = 0;
  core.report(first, now);
  EXPECT_EQ(first, 1001u) << "above every number of an agent process before";
  call(raise_of(one, epoch(1)));
  const std::uint64_t told = only<Reply>(launched(one)).result->sequence;
  core.report(second, now);
  EXPECT_GE(told, first);
  EXPECT_LT(told, second);
}

}  // namespace
}  // namespace yado::agent
