#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct ControlFenceTest : ControlCoreTest {};

TEST_F(ControlFenceTest, AnExclusiveOwnersLeaseIsWaitedForWhenItsHostIsSilent) {
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

TEST_F(ControlFenceTest, AnAcknowledgedStopShortensTheWait) {
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

TEST_F(ControlFenceTest, AStopThatIsNotAcknowledgedShortensNothing) {
  up_with_lease();
  core().move(++last_ask, site, h2, now);
  const auto stop = only_call<StopCall>(take());
  EXPECT_THAT(calls<RaiseCall>(failed(stop.id, Errc::timed_out)), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(lease_and_grace() - 100ms, {h1, h2})), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(100ms, {h1, h2})), SizeIs(1));
}

TEST_F(ControlFenceTest, AnExitIsProofAndARefusedConnectionIsNot) {
  up_with_lease();
  const auto refused = ask(Evidence::refused, {}, h1);
  EXPECT_THAT(calls<RaiseCall>(refused), IsEmpty());

  made.emplace(Settings{});
  agents.clear();
  up_with_lease();
  core().instance_exited(h1, record().instance, site, now);
  EXPECT_THAT(calls<RaiseCall>(take()), SizeIs(1));
}

TEST_F(ControlFenceTest, FromTheGrantOnOnlyTheNewEpochGetsALease) {
  up_with_lease();
  const Record old = record();
  core().move(++last_ask, site, h2, now);
  const auto stop = only_call<StopCall>(take());
  EXPECT_EQ(core().renew(site, old.instance, old.epoch, now).error().code, Errc::stale_epoch);
  const auto raise = only_call<RaiseCall>(done(stop.id, CallReply{}));
  EXPECT_TRUE(core().renew(site, raise.what.instance, raise.what.epoch, now)) << "it needs one to become ready";
}

TEST_F(ControlFenceTest, ADeployDuringTheWaitDoesNotTakeTheStopOfTheUnbornForProof) {
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

TEST_F(ControlFenceTest, AStopDuringTheWaitDoesNotTakeTheStopOfTheUnbornForProof) {
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

TEST_F(ControlFenceTest, ARestartDuringTheWaitDoesNotTakeTheStopOfTheUnbornForProof) {
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

TEST_F(ControlFenceTest, AStopIsDurableBeforeItIsCarriedOut) {
  up_with_lease();
  ASSERT_TRUE(core().stop(site, now));
  const auto actions = take();
  const auto call = std::ranges::find_if(actions, [](const Action& one) { return std::holds_alternative<Call>(one); });
  const auto durable = std::ranges::find_if(actions, [](const Action& one) {
    const Persist* persist = std::get_if<Persist>(&one);
    return persist != nullptr && persist->record.stopped;
  });
  ASSERT_NE(call, actions.end());
  EXPECT_LT(durable - actions.begin(), call - actions.begin());
}

TEST_F(ControlFenceTest, AStoppedOwnerThatAcknowledgedItIsRaisedAgainAtOnce) {
  up_with_lease();
  ASSERT_TRUE(core().stop(site, now));
  const auto stop = only_call<StopCall>(take());
  EXPECT_EQ(core().renew(site, stop.what.instance, stop.what.epoch, now).error().code, Errc::not_owner);
  done(stop.id, CallReply{});
  EXPECT_THAT(calls<RaiseCall>(deploy(spec(Consistency::exclusive))), SizeIs(1));
}

}  // namespace
}  // namespace yado::control
