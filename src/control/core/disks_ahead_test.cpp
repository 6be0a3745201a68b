// A VM with disks that moves while it runs: what it has written to them goes before it stands still.
#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;
using ::testing::ElementsAre;

struct DisksAheadTest : ControlCoreTest {
  const HostId h4{"h4"};
  const std::vector<HostId> everybody{h1, h2, h3, h4};
  AskId mover = 0;

  /// From h1 to h4: up to the first part of its disks.
  Made<HandoverCall> move() {
    WorkloadSpec wanted = spec(Consistency::shared);
    wanted.kind = Kind::vm;
    wanted.vm.memory_bytes = 256 << 20;
    wanted.vm.disks = {"/srv/disk.qcow2"};
    wanted.vm.split = Split{.local_bytes = 64 << 20, .over = {{.host = h2, .address = {}}, {.host = h3, .address = {}}}};
    for (const HostId& host : everybody) agent(host).memory = {"10.1.0." + host.str().substr(1), 7001};
    up(wanted, everybody);
    core().move_live(mover = ++last_ask, site, h4, std::nullopt, now);
    const auto spread = only_call<ResplitCall>(take());
    return only_call<HandoverCall>(done(spread.id, CallReply{.instance = spread.what.instance, .sequence = agent(spread.host).sequence}));
  }
  std::vector<Action> image_of(CallId call, const HostId& host, const ImageId& id, std::uint64_t bytes) {
    const ImageReport image{.id = id, .workload = site, .bytes = bytes};
    agent(host).images.push_back(image);
    return done(call, CallReply{.image = image, .sequence = agent(host).sequence});
  }
  /// So much of its disks is an image, and in so much time on h4, too.
  std::vector<Action> ahead(const Made<HandoverCall>& seal, std::uint64_t bytes, nanoseconds took) {
    EXPECT_TRUE(seal.what.disks_only);
    const auto pull = only_call<PullCall>(image_of(seal.id, seal.host, seal.what.image, bytes));
    EXPECT_EQ(pull.host, h4);
    EXPECT_EQ(pull.what.image, seal.what.image);
    EXPECT_EQ(pull.what.from, agent(h1).agent);
    now += took;
    return image_of(pull.id, pull.host, pull.what.image, bytes);
  }
  Made<HandoverCall> expected(const std::vector<Action>& actions) {
    const auto expect = only_call<ExpectCall>(actions);
    return only_call<HandoverCall>(done(expect.id, CallReply{.instance = expect.what.instance}));
  }
  void runs_there(const Made<HandoverCall>& handover) {
    stands(handover.host, handover.what.instance, Purpose::owner, handover.what.epoch, InstanceState::frozen);
    raised(only_call<RaiseCall>(pulled(only_call<PullCall>(image_at(handover.id, handover.host, handover.what.image)))));
    EXPECT_EQ(record().host, h4);
  }
};

TEST_F(DisksAheadTest, WhatWasWrittenGoesBeforeItStandsStill) {
  const auto seal = move();
  EXPECT_EQ(seal.host, h1);
  EXPECT_EQ(seal.what.to, h4);
  EXPECT_THAT(seal.what.ahead, IsEmpty());
  const auto actions = ahead(seal, 1 << 20, 20ms);
  const auto expect = only_call<ExpectCall>(actions);
  EXPECT_THAT(expect.what.ahead, ElementsAre(seal.what.image)) << "it is put into its place there";
  EXPECT_THAT(beat(h4).drop, IsEmpty()) << "it is needed";
  EXPECT_THAT(beat(h1).drop, IsEmpty());
  const auto handover = expected(actions);
  EXPECT_FALSE(handover.what.disks_only);
  EXPECT_THAT(handover.what.ahead, ElementsAre(seal.what.image));
  EXPECT_EQ(handover.what.most_disk_bytes, 4u << 20) << "goes beside its devices, however slow the way";
  EXPECT_EQ(route().state, RouteState::up);
  runs_there(handover);
  EXPECT_THAT(beat(h4).drop, SizeIs(2)) << "it has them in its own disks";
  EXPECT_THAT(beat(h1).drop, SizeIs(2));
}

TEST_F(DisksAheadTest, WhatWasWrittenWhileMuchWentFollowsOnce) {
  const auto seal = move();
  const auto second = only_call<HandoverCall>(ahead(seal, 1000 << 20, 5s));
  EXPECT_THAT(second.what.ahead, ElementsAre(seal.what.image));
  EXPECT_NE(second.what.image, seal.what.image);
  const auto actions = ahead(second, 500 << 20, 5s);
  EXPECT_THAT(only_call<ExpectCall>(actions).what.ahead, ElementsAre(seal.what.image, second.what.image));
  const auto handover = expected(actions);
  EXPECT_NEAR(static_cast<double>(handover.what.most_disk_bytes), 10 << 20, 1) << "50 ms of 200 MiB/s";
  runs_there(handover);
}

TEST_F(DisksAheadTest, OfAFastWayOneIsEnough) {
  const auto handover = expected(ahead(move(), 100 << 20, 40ms));
  EXPECT_THAT(handover.what.ahead, SizeIs(1));
  EXPECT_NEAR(static_cast<double>(handover.what.most_disk_bytes), 125 << 20, 1);
}

TEST_F(DisksAheadTest, WhoHasWrittenMuchMeanwhileIsNotStoppedBeforeThatWentToo) {
  const auto seal = move();
  const auto early = expected(ahead(seal, 1 << 20, 20ms));
  const auto again = only_call<HandoverCall>(done(early.id, CallReply{.instance = early.what.instance, .detail = "much"}));
  EXPECT_THAT(again.what.ahead, ElementsAre(seal.what.image));
  const auto actions = ahead(again, 50 << 20, 1s);
  EXPECT_THAT(calls<ExpectCall>(actions), IsEmpty()) << "it is expected already";
  const auto handover = only_call<HandoverCall>(actions);
  EXPECT_THAT(handover.what.ahead, ElementsAre(seal.what.image, again.what.image));
  EXPECT_EQ(handover.what.most_disk_bytes, 0u) << "whatever it writes: once must be enough";
  runs_there(handover);
}

TEST_F(DisksAheadTest, ItStaysWhereItIsWhenItsDisksCannotGo) {
  const auto seal = move();
  const auto actions = failed(seal.id, Errc::no_space);
  EXPECT_EQ(answer_to(mover, actions).route.error().code, Errc::no_space);
  EXPECT_EQ(route().state, RouteState::up);
  EXPECT_EQ(record().host, h1);
}

TEST_F(DisksAheadTest, TheyDoNotGoToAHostThatFellSilentMeanwhile) {
  const auto seal = move();
  silence({h1, h2, h3});
  EXPECT_THAT(calls<PullCall>(image_of(seal.id, h1, seal.what.image, 1000)), IsEmpty());
  EXPECT_EQ(answer_to(mover, pass(1ms, {h1, h2, h3})).route.error().code, Errc::unavailable);
  EXPECT_EQ(route().state, RouteState::up);
}

TEST_F(DisksAheadTest, WhatWentIsDroppedWhenTheRestDoesNot) {
  const auto seal = move();
  const auto pull = only_call<PullCall>(image_of(seal.id, h1, seal.what.image, 1000));
  const auto actions = failed(pull.id, Errc::no_space);
  EXPECT_EQ(answer_to(mover, actions).route.error().code, Errc::no_space);
  EXPECT_THAT(beat(h1).drop, SizeIs(1));
  EXPECT_THAT(calls<HandoverCall>(image_of(pull.id, h4, seal.what.image, 1000)), IsEmpty()) << "too late";
}

TEST_F(DisksAheadTest, ItsHostsDeathMeanwhileIsAnOwnersDeath) {
  const auto seal = move();
  const auto actions = silence({h2, h3, h4});
  EXPECT_FALSE(answer_to(mover, actions).route);
  EXPECT_NE(only_call<RaiseCall>(actions).host, h1);
  EXPECT_THAT(all<Call>(image_of(seal.id, h1, seal.what.image, 1000)), IsEmpty()) << "too late";
}

}  // namespace
}  // namespace yado::control
