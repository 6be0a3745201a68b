#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct ControlRedundancyTest : ControlCoreTest {};

// ---- images --------------------------------------------------------------------------------------------------------

TEST_F(ControlRedundancyTest, AnImageIsBuiltBesideTheOwnerCopiedAndAcknowledgedOnce) {
  auto actions = up(spec(Consistency::shared, StandbyLevel::image));
  const auto build = only_call<BuildCall>(actions);
  EXPECT_NE(build.host, record().host);
  actions = built(build);
  const auto pull = only_call<PullCall>(actions);
  EXPECT_EQ(pull.what.from, agent(build.host).agent);
  EXPECT_NE(pull.host, build.host);
  EXPECT_THAT(events(actions), ::testing::Not(Contains("image-acknowledged"))) << "one copy survives no host";
  actions = pulled(pull);
  std::ranges::move(pass(2000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_EQ(std::ranges::count(events(actions), "image-acknowledged"), 1);
  EXPECT_THAT(all<Call>(actions), IsEmpty());
}

TEST_F(ControlRedundancyTest, ALostCopyIsMadeAgain) {
  const auto pull =
      only_call<PullCall>(built(only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)))));
  pulled(pull);
  beats({h1, h2, h3});
  agent(pull.host).images.clear();
  EXPECT_THAT(calls<PullCall>(beats({pull.host})), SizeIs(1));
}

TEST_F(ControlRedundancyTest, ADamagedImageIsReplacedByANewOne) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  const auto pull = only_call<PullCall>(built(build));
  auto actions = failed(pull.id, Errc::corrupt);
  std::ranges::move(pass(5000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_THAT(calls<PullCall>(actions), IsEmpty()) << "copied on although it is damaged";
  const auto again = only_call<BuildCall>(actions);
  EXPECT_NE(again.what.image, build.what.image);
}

TEST_F(ControlRedundancyTest, AnImageIsRebuiltWhenTheSpecChangesOrItIsOld) {
  WorkloadSpec wanted = spec(Consistency::shared, StandbyLevel::image);
  const auto first = only_call<BuildCall>(up(wanted));
  pulled(only_call<PullCall>(built(first)));
  for (auto& [host, report] : agents)
    for (ImageReport& image : report.images) image.age = wanted.policy.image_age;
  const auto second = only_call<BuildCall>(beats({h1, h2, h3}));
  EXPECT_NE(second.what.image, first.what.image);
  const auto copies = built(second);
  EXPECT_EQ(disk[site].image->id, second.what.image);
  for (auto& [host, report] : agents)  // the old one goes by their next reports
    std::erase_if(report.images, [&](const ImageReport& image) { return image.id == first.what.image; });
  pulled(only_call<PullCall>(copies));

  wanted.container.command = {"serve", "--better"};
  wanted.policy.placement = {second.host};  // where the image of the old spec lies
  const auto raise = only_call<RaiseCall>(deploy(wanted));
  ASSERT_EQ(raise.host, second.host);
  EXPECT_FALSE(raise.what.image) << "of another spec";
  EXPECT_THAT(calls<BuildCall>(raised(raise)), SizeIs(1));
}

TEST_F(ControlRedundancyTest, ABuildThatFailsIsTriedAgainLaterAndOnAnotherHost) {
  const auto first = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  EXPECT_THAT(calls<BuildCall>(failed(first.id)), IsEmpty());
  const auto second = only_call<BuildCall>(pass(1100ms, {h1, h2, h3}));
  EXPECT_NE(second.host, first.host);
  EXPECT_NE(second.what.image, first.what.image) << "a name is never given twice";
}

TEST_F(ControlRedundancyTest, WithAnImageOnTheHostItIsWhatIsRaised) {
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  built(build);
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  EXPECT_EQ(raise.host, build.host);
  EXPECT_EQ(raise.what.image, build.what.image);
}

TEST_F(ControlRedundancyTest, HostsWhereCheckpointsDoNotWorkHoldNoImage) {
  agent(h2).checkpoint_works = false;
  const auto build = only_call<BuildCall>(up(spec(Consistency::shared, StandbyLevel::image)));
  EXPECT_EQ(build.host, h3);
  EXPECT_EQ(only_call<PullCall>(built(build)).host, h1);
}

TEST_F(ControlRedundancyTest, AnExclusiveWorkloadIsNeverStartedTwiceForTheSakeOfAnImage) {
  auto actions = up(spec(Consistency::exclusive, StandbyLevel::frozen));
  std::ranges::move(pass(3000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_THAT(all<Call>(actions), IsEmpty());
}

// ---- frozen standbys -----------------------------------------------------------------------------------------------

struct ControlStandbyTest : ControlCoreTest {
  /// An owner on h1, its image, and the standby that is prepared from it.
  Made<PrepareCall> wanted(const WorkloadSpec& wanted = spec(Consistency::shared, StandbyLevel::frozen)) {
    auto actions = up(wanted);
    EXPECT_THAT(calls<PrepareCall>(actions), IsEmpty()) << "it waits for the image";
    return only_call<PrepareCall>(built(only_call<BuildCall>(actions)));
  }
};

TEST_F(ControlStandbyTest, IsPreparedFromTheImageNotBesideTheOwner) {
  const auto prepare = wanted();
  EXPECT_EQ(prepare.what.image, disk[site].image->id);
  EXPECT_NE(prepare.host, record().host);
  prepared(prepare);
  EXPECT_EQ(disk[site].standby, prepare.what.instance);
  EXPECT_THAT(beat(prepare.host).retire, IsEmpty());
  EXPECT_EQ(route().fallback.front(), prepare.host) << "gates without control thaw it";
  EXPECT_EQ(only_call<RaiseCall>(ask(Evidence::silent, {}, h1)).host, prepare.host);
}

TEST_F(ControlStandbyTest, IsNotRetiredWhileItIsBeingPrepared) {
  const auto prepare = wanted();
  stands(prepare.host, prepare.what.instance, Purpose::standby, Epoch(), InstanceState::starting);
  EXPECT_THAT(beat(prepare.host).retire, IsEmpty());
  failed(prepare.id);
  EXPECT_THAT(beat(prepare.host).retire, SizeIs(1));
}

TEST_F(ControlStandbyTest, IsRenewedByAgeAndTheOldOneGoesOnlyWhenTheNewOneStands) {
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

TEST_F(ControlStandbyTest, ThatWasThawedIsTheOwnerAndANewOneIsPreparedElsewhere) {
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

TEST_F(ControlStandbyTest, ThatDiedIsReplaced) {
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

TEST_F(ControlStandbyTest, WhereCheckpointsDoNotWorkItIsStartedThenFrozen) {
  for (const HostId& host : {h1, h2}) agent(host).checkpoint_works = false;
  const auto prepare = only_call<PrepareCall>(up(spec(Consistency::shared, StandbyLevel::frozen), {h1, h2}));
  EXPECT_EQ(prepare.host, h2);
  EXPECT_FALSE(prepare.what.image);
}

}  // namespace
}  // namespace yado::control
