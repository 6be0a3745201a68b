#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

/// A VM on h1 whose memory is on h2 and h3, too; h4 is free.
struct ControlMigrationTest : ControlCoreTest {
  const HostId h4{"h4"};
  const std::vector<HostId> everybody{h1, h2, h3, h4};

  static WorkloadSpec vm(Consistency consistency = Consistency::shared) {
    WorkloadSpec made = spec(consistency);
    made.kind = Kind::vm;
    made.vm.memory_bytes = 256 << 20;
    made.vm.split = Split{.local_bytes = 64 << 20, .over = {{.host = h2, .address = {}}, {.host = h3, .address = {}}}};
    return made;
  }
  void start(const WorkloadSpec& wanted = vm()) {
    for (const HostId& host : everybody) agent(host).memory = {"10.1.0." + host.str().substr(1), 7001};
    up(wanted, everybody);
    if (wanted.policy.consistency == Consistency::exclusive) renew();
    ASSERT_EQ(record().host, h1);
  }
  /// Up to the handover: its memory is spread first.
  std::vector<Action> move(const std::optional<HostId>& to, std::optional<Split> split = std::nullopt) {
    core().move_live(++last_ask, site, to, std::move(split), now);
    std::vector<Action> actions = take();
    if (calls<ResplitCall>(actions).empty()) return actions;
    const auto spread = only_call<ResplitCall>(actions);
    EXPECT_EQ(spread.host, record().host);
    EXPECT_EQ(spread.what.spec.vm.split->over.back().host, to.value_or(h2)) << "where what is here will land";
    actions = done(spread.id, CallReply{.instance = spread.what.instance, .sequence = agent(spread.host).sequence});
    return expects ? expected(only_call<ExpectCall>(actions)) : actions;
  }
  bool expects = true;  ///< the other host is ready at once
  std::vector<Action> expected(const Made<ExpectCall>& expect) { return done(expect.id, CallReply{.instance = expect.what.instance}); }
  /// The guest stands still on its host, and what is no page is an image there.
  std::vector<Action> handed_over(const Made<HandoverCall>& handover) {
    stands(handover.host, handover.what.instance, Purpose::owner, handover.what.epoch, InstanceState::frozen);
    return image_at(handover.id, handover.host, handover.what.image);
  }
};

TEST_F(ControlMigrationTest, WhatIsHandedOverIsRaisedThereAndNothingElse) {
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  const AskId mover = last_ask;
  EXPECT_EQ(handover.host, h1);
  EXPECT_EQ(handover.what.to, h4);
  EXPECT_EQ(handover.what.instance, record().instance);
  EXPECT_EQ(handover.what.spec.vm.split->over.front().port, 7001) << "where the memory is to be";
  EXPECT_EQ(route().state, RouteState::up) << "it serves meanwhile";
  const Epoch before = record().epoch;
  const auto pull = only_call<PullCall>(handed_over(handover));
  EXPECT_EQ(pull.host, h4);
  EXPECT_EQ(pull.what.from, agent(h1).agent);
  EXPECT_EQ(pull.what.image, handover.what.image);
  const auto raise = only_call<RaiseCall>(pulled(pull));
  EXPECT_EQ(raise.host, h4);
  EXPECT_GT(raise.what.epoch, before);
  EXPECT_EQ(raise.what.image, handover.what.image);
  EXPECT_TRUE(raise.what.only_image) << "a cold start would throw away what it had";
  EXPECT_THAT(beat(h1).retire, IsEmpty()) << "until the other one is up it is needed";
  EXPECT_THAT(beat(h1).drop, IsEmpty());
  const auto actions = raised(raise);
  EXPECT_EQ(answer_to(mover, actions).route->host, h4);
  const auto stop = only_call<StopCall>(actions);
  EXPECT_EQ(stop.host, h1) << "at once: it would be thawed by a raise there";
  EXPECT_EQ(stop.what.instance, handover.what.instance);
  EXPECT_THAT(beat(h1).retire, SizeIs(1));
  EXPECT_THAT(beat(h1).drop, SizeIs(1));
  EXPECT_THAT(beat(h4).drop, SizeIs(1)) << "its pages are the guest's now: nobody can be raised from it again";
}

TEST_F(ControlMigrationTest, TheOtherHostExpectsItBeforeItStandsStill) {
  start();
  expects = false;
  const auto expect = only_call<ExpectCall>(move(h4));
  EXPECT_EQ(expect.host, h4);
  EXPECT_EQ(expect.what.epoch, record().epoch);
  EXPECT_THAT(beat(h4).expected, ::testing::ElementsAre(expect.what.instance)) << "it is not to be cleared away";
  EXPECT_THAT(beat(h3).expected, IsEmpty());
  const auto pull = only_call<PullCall>(handed_over(only_call<HandoverCall>(expected(expect))));
  const auto raise = only_call<RaiseCall>(pulled(pull));
  EXPECT_EQ(raise.what.instance, expect.what.instance) << "where everything is ready";
  EXPECT_THAT(beat(h4).expected, ::testing::ElementsAre(expect.what.instance)) << "the raise may not have arrived";
  raised(raise);
  EXPECT_THAT(beat(h4).expected, IsEmpty());
}

TEST_F(ControlMigrationTest, AHostThatHasNothingReadyTakesLonger) {
  start();
  expects = false;
  const auto expect = only_call<ExpectCall>(move(h4));
  const auto handover = only_call<HandoverCall>(failed(expect.id, Errc::unsupported));
  EXPECT_THAT(beat(h4).expected, IsEmpty());
  EXPECT_NE(only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(handover)))).what.instance, expect.what.instance);
}

TEST_F(ControlMigrationTest, ToAHostThatDoesNotAnswerNothingIsHandedOver) {
  start();
  expects = false;
  const auto expect = only_call<ExpectCall>(move(h4));
  const auto actions = failed(expect.id, Errc::timed_out);
  EXPECT_FALSE(answer_to(last_ask, actions).route);
  EXPECT_THAT(calls<HandoverCall>(actions), IsEmpty());
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_THAT(beat(h4).expected, IsEmpty()) << "should it still get ready, it is cleared away";
}

TEST_F(ControlMigrationTest, WhatARaiseFoundReadyIsNotFoundTwice) {
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  const auto raise = only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(handover))));
  const auto again = only_call<RaiseCall>(failed(raise.id));
  EXPECT_EQ(again.host, h1);
  EXPECT_NE(again.what.instance, raise.what.instance);
}

TEST_F(ControlMigrationTest, ItsHostsDeathWhileItIsExpectedIsAnOwnersDeath) {
  start();
  expects = false;
  const auto expect = only_call<ExpectCall>(move(h4));
  const auto raise = only_call<RaiseCall>(silence({h2, h3, h4}));
  EXPECT_NE(raise.what.instance, expect.what.instance) << "what is ready there waits for pages that nobody has";
  EXPECT_THAT(beat(h4).expected, IsEmpty());
  EXPECT_THAT(calls<HandoverCall>(expected(expect)), IsEmpty()) << "too late";
}

TEST_F(ControlMigrationTest, AfterARestartOfControlNothingIsExpected) {
  start();
  expects = false;
  move(h4);
  restart();
  beats(everybody);
  EXPECT_THAT(beat(h4).expected, IsEmpty());
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_EQ(record().host, h1);
}

TEST_F(ControlMigrationTest, WhatAnEarlierMoveLeftBehindIsRetiredDuringTheNext) {
  start();
  raised(only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(only_call<HandoverCall>(move(h4)))))));
  const auto back = only_call<HandoverCall>(move(h2));
  EXPECT_THAT(beat(h1).retire, SizeIs(1)) << "it has nothing any more, and would be thawed by a raise there";
  EXPECT_THAT(calls<PullCall>(handed_over(back)), SizeIs(1));
  EXPECT_THAT(beat(h4).retire, IsEmpty());
}

/// Nothing is asked of it then: a call to nobody would take minutes to fail, and the guest may stand still meanwhile.
TEST_F(ControlMigrationTest, AHostThatFellSilentBeforeItIsAskedIsNotAsked) {
  const auto die = [&] { return silence({h1, h2, h3}); };
  start();
  core().move_live(++last_ask, site, h4, std::nullopt, now);
  const auto spread = only_call<ResplitCall>(take());
  const AskId while_it_spreads = last_ask;
  die();
  auto actions = done(spread.id, CallReply{.instance = spread.what.instance, .sequence = agent(h1).sequence});
  EXPECT_THAT(calls<ExpectCall>(actions), IsEmpty());
  EXPECT_LE(core().next_deadline(), now);
  actions = pass(1ms, {h1, h2, h3});
  EXPECT_EQ(answer_to(while_it_spreads, actions).route.error().code, Errc::unavailable);
  EXPECT_EQ(route().state, RouteState::up);

  made.emplace(Settings{}), agents.clear(), disk.clear();
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  const AskId while_it_is_handed_over = last_ask;
  die();
  EXPECT_THAT(calls<PullCall>(handed_over(handover)), IsEmpty());
  actions = pass(1ms, {h1, h2, h3});
  EXPECT_EQ(answer_to(while_it_is_handed_over, actions).route.error().code, Errc::unavailable);
  EXPECT_EQ(only_call<RaiseCall>(actions).host, h1) << "where it stands";
}

TEST_F(ControlMigrationTest, ItStaysWhereItIsWhenItCannotBeHandedOver) {
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  const auto actions = failed(handover.id, Errc::no_space);
  EXPECT_EQ(answer_to(last_ask, actions).route.error().code, Errc::no_space);
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_EQ(record().host, h1);
  // Its memory is to lie as before; then it may be tried again.
  done(only_call<ResplitCall>(actions).id, CallReply{});
  EXPECT_THAT(calls<HandoverCall>(move(h4)), SizeIs(1));
}

TEST_F(ControlMigrationTest, WhenTheOtherHostCannotItIsThawedWhereItStands) {
  for (const bool at_pull : {true, false}) {
    SCOPED_TRACE(at_pull ? "pull" : "raise");
    made.emplace(Settings{}), agents.clear(), disk.clear();
    start();
    const auto handover = only_call<HandoverCall>(move(h4));
    const AskId mover = last_ask;
    const auto pull = only_call<PullCall>(handed_over(handover));
    auto actions = at_pull ? failed(pull.id, Errc::unavailable) : failed(only_call<RaiseCall>(pulled(pull)).id);
    EXPECT_FALSE(answer_to(mover, actions).route);
    const auto raise = only_call<RaiseCall>(actions);
    EXPECT_EQ(raise.host, h1);
    EXPECT_FALSE(raise.what.only_image);
    EXPECT_EQ(raise.what.spec->vm.split->local_bytes, vm().vm.split->local_bytes);
    // Its agent thaws it, under its name.
    const auto& thawed = stands(h1, handover.what.instance, Purpose::owner, raise.what.epoch);
    done(raise.id, reply_of(h1, thawed, Way::frozen));
    EXPECT_EQ(route().state, RouteState::up);
    EXPECT_EQ(record().host, h1);
  }
}

TEST_F(ControlMigrationTest, WhatAMoveLeftIsNoMemoryToGoOnWithOnceItsGuestRanElsewhere) {
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  raised(only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(handover)))));
  ASSERT_EQ(record().host, h4);
  agent(h1).load = 5;  // only for what stands there, which it has not ended yet, it would be chosen
  beat(h1);
  take();
  agent(h4).instances.clear();
  core().instance_exited(h4, record().instance, site, now);
  EXPECT_NE(only_call<RaiseCall>(take()).host, h1);
}

/// It was to go on at h4, which has a copy of its image, too; neither that nor the thaw at h1 comes to anything.
TEST_F(ControlMigrationTest, AfterAMoveThatFailedEverywhereItsImageIsAskedForBeforeItIsBegunAnew) {
  WorkloadSpec wanted = vm();
  wanted.policy.standby = StandbyLevel::image;
  for (const HostId& host : everybody) agent(host).memory = {"10.1.0." + host.str().substr(1), 7001};
  const auto build = only_call<BuildCall>(up(wanted, everybody));
  const auto pull = only_call<PullCall>(built(build));
  pulled(pull);
  const HostId holder = pull.host;
  const auto handover = only_call<HandoverCall>(move(holder));
  const auto there = only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(handover))));
  ASSERT_EQ(there.host, holder);
  const auto thaw = only_call<RaiseCall>(failed(there.id));
  ASSERT_EQ(thaw.host, h1);
  EXPECT_EQ(thaw.what.image, build.what.image) << "or h1 would begin it anew when it cannot thaw it";
  agent(h1).instances.clear();
  beat(h1);
  const auto again = only_call<RaiseCall>(failed(thaw.id));
  EXPECT_EQ(again.what.image, build.what.image);
  EXPECT_FALSE(again.what.only_image);
}

TEST_F(ControlMigrationTest, AGateThatMissesItWaitsForTheEndOfTheMove) {
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  const auto pull = only_call<PullCall>(handed_over(handover));
  EXPECT_THAT(all<Call>(ask(Evidence::unresponsive, record().epoch, h1)), IsEmpty()) << "it stands still, it is not lost";
  const AskId gate = last_ask;
  EXPECT_EQ(answer_to(gate, raised(only_call<RaiseCall>(pulled(pull)))).route->host, h4);
}

TEST_F(ControlMigrationTest, ItsHostsDeathMeanwhileIsAnOwnersDeath) {
  start();
  const auto handover = only_call<HandoverCall>(move(h4));
  const AskId mover = last_ask;
  const auto actions = silence({h2, h3, h4});
  EXPECT_FALSE(answer_to(mover, actions).route);
  const auto raise = only_call<RaiseCall>(actions);
  EXPECT_NE(raise.host, h1);
  EXPECT_FALSE(raise.what.only_image);
  EXPECT_THAT(calls<RaiseCall>(handed_over(handover)), IsEmpty()) << "too late";
}

TEST_F(ControlMigrationTest, AfterARestartOfControlItIsThawedWhereItStands) {
  start();
  handed_over(only_call<HandoverCall>(move(h4)));
  restart();
  const auto raise = only_call<RaiseCall>(beats(everybody));
  EXPECT_EQ(raise.host, h1);
}

TEST_F(ControlMigrationTest, ARestartWhileItIsRaisedKillsNobody) {
  start();
  const auto raise = only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(only_call<HandoverCall>(move(h4))))));
  restart();
  EXPECT_THAT(beat(h1).retire, IsEmpty()) << "it may be the only one that has everything";
  stands(h4, raise.what.instance, Purpose::owner, raise.what.epoch);
  beats(everybody);
  EXPECT_EQ(record().host, h4) << "it had been carried out";
  EXPECT_THAT(beat(h1).retire, SizeIs(1));
}

TEST_F(ControlMigrationTest, AnExclusiveOneNeedsNoLeaseToEnd) {
  start(vm(Consistency::exclusive));
  const auto pull = only_call<PullCall>(handed_over(only_call<HandoverCall>(move(h4))));
  const auto actions = pulled(pull);
  EXPECT_THAT(calls<StopCall>(actions), IsEmpty()) << "it stands still, and may be needed";
  EXPECT_EQ(only_call<RaiseCall>(actions).host, h4);
  EXPECT_THAT(beat(h1).retire, IsEmpty());
}

TEST_F(ControlMigrationTest, AnIncrementalCheckpointGoesOnFromTheImageOfWhoMoved) {
  WorkloadSpec wanted = vm();
  wanted.policy.standby = StandbyLevel::image;
  for (const HostId& host : everybody) agent(host).memory = {"10.1.0." + host.str().substr(1), 7001};
  const auto build = only_call<BuildCall>(up(wanted, everybody));
  pulled(only_call<PullCall>(built(build)));
  for (const HostId& to : {h4, h3}) {
    SCOPED_TRACE(to.str());
    raised(only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(only_call<HandoverCall>(move(to)))))), Way::image);
    EXPECT_EQ(record().host, to);
    EXPECT_EQ(record().raised_from, build.what.image);
  }
  ASSERT_TRUE(core().renew_image(site, ControlCore::Extent::changes, now));
  EXPECT_EQ(only_call<BuildCall>(take()).what.base, build.what.image);
}

TEST_F(ControlMigrationTest, ItWaitsForACheckpointAndACheckpointForIt) {
  WorkloadSpec wanted = vm();
  wanted.policy.standby = StandbyLevel::image;
  for (const HostId& host : everybody) agent(host).memory = {"10.1.0." + host.str().substr(1), 7001};
  const auto build = only_call<BuildCall>(up(wanted, everybody));
  EXPECT_THAT(calls<ResplitCall>(move(h4)), IsEmpty());
  EXPECT_THAT(calls<ResplitCall>(built(build)), SizeIs(1));
  ASSERT_TRUE(core().renew_image(site, ControlCore::Extent::all, now));
  EXPECT_THAT(calls<BuildCall>(pass(1000ms, everybody)), IsEmpty());
}

TEST_F(ControlMigrationTest, WithoutAWishItIsTheBestOfTheOthers) {
  start();
  const auto handover = only_call<HandoverCall>(move(std::nullopt));
  EXPECT_EQ(handover.what.to, h2);
  EXPECT_THAT(handover.what.spec.vm.split->over, SizeIs(2)) << "another one keeps what was meant for it";
}

TEST_F(ControlMigrationTest, WhatCannotBeIsRefused) {
  start();
  const auto refusal = [&](const HostId& to) {
    const auto actions = move(to);
    EXPECT_THAT(all<Call>(actions), IsEmpty());
    return answer_to(last_ask, actions).route.error().code;
  };
  EXPECT_EQ(refusal(h1), Errc::conflict) << "it is there";
  EXPECT_EQ(refusal(HostId("h9")), Errc::unavailable);
  move(h4);
  EXPECT_EQ(refusal(h2), Errc::conflict) << "one move at a time";
}

TEST_F(ControlMigrationTest, WithParityItsMemoryStaysOnItsHosts) {
  const HostId h5{"h5"};
  WorkloadSpec wanted = vm();
  wanted.vm.split->redundancy = Redundancy::parity;
  wanted.vm.split->over.push_back({.host = h4, .address = {}});
  for (const HostId& host : {h1, h2, h3, h4, h5}) agent(host).memory = {"10.1.0." + host.str().substr(1), 7001};
  agent(h5).memory_free_bytes = agent(h1).memory_free_bytes + 1;
  up(wanted, {h1, h2, h3, h4, h5});
  ASSERT_EQ(record().host, h1);
  const auto over_of = [](const Made<ResplitCall>& spread) {
    std::vector<HostId> hosts;
    for (const MemoryHost& one : spread.what.spec.vm.split->over) hosts.push_back(one.host);
    return hosts;
  };
  core().move_live(++last_ask, site, h5, std::nullopt, now);
  auto spread = only_call<ResplitCall>(take());
  EXPECT_EQ(over_of(spread), (std::vector<HostId>{h2, h3, h4})) << "what is here has its places there: it lands nowhere else";
  done(only_call<ResplitCall>(failed(spread.id, Errc::unavailable)).id, CallReply{});
  // One of them as the next main host: another one takes its place.
  core().move_live(++last_ask, site, h4, std::nullopt, now);
  spread = only_call<ResplitCall>(take());
  EXPECT_EQ(over_of(spread), (std::vector<HostId>{h2, h3, h5}));
}

TEST_F(ControlMigrationTest, ItsMemoryIsKeptAsWishedFromThenOn) {
  start();
  Split wish{.local_bytes = 128 << 20, .over = {{.host = h3, .address = {}}}};
  const auto handover = only_call<HandoverCall>(move(h4, wish));
  EXPECT_EQ(record().spec.vm.split->local_bytes, vm().vm.split->local_bytes) << "not before it is there";
  raised(only_call<RaiseCall>(pulled(only_call<PullCall>(handed_over(handover)))));
  EXPECT_EQ(record().spec.vm.split->local_bytes, wish.local_bytes);
}

}  // namespace
}  // namespace yado::control
