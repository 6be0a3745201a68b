// Clones: a second VM from the image of another one.
#include "control/core/split_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct ControlCloneTest : ControlSplitTest {
  const WorkloadId twin{"twin"};

  WorkloadSpec twins() const {
    WorkloadSpec wanted = split();
    wanted.name = twin;
    wanted.service.hosts = {"twin.example"};
    return wanted;
  }
  /// The origin runs on h1, and its image is on h1 and h2, a share of it on h3.
  ImageId acknowledged() {
    const auto build = only_call<BuildCall>(up(split()));
    copied(only_call<PullCall>(saved(build)));
    beats({h1, h2, h3});
    return build.what.image;
  }
  AskId clone(WorkloadSpec wanted, std::optional<HostId> host = {}) {
    core().clone(++last_ask, site, std::move(wanted), std::move(host), now);
    return last_ask;
  }
  std::string refusal(AskId asked) {
    const auto actions = take();
    EXPECT_THAT(all<Call>(actions), IsEmpty());
    EXPECT_THAT(all<Persist>(actions), IsEmpty());
    const Answer answer = answer_to(asked, actions);
    return answer.route ? "" : answer.route.error().message;
  }
  /// It runs on h2.
  void cloned() {
    clone(twins(), h2);
    const auto raise = only_call<RaiseCall>(take());
    stand_up(raise);
  }
  void stand_up(const Made<RaiseCall>& raise) {
    agent(raise.host).instances.push_back({.id = raise.what.instance, .workload = twin, .epoch = raise.what.epoch, .state = InstanceState::running, .endpoint = {"10.0.0.9", 9}});
    done(raise.id, CallReply{.instance = raise.what.instance, .endpoint = {"10.0.0.9", 9}, .way = Way::image, .sequence = agent(raise.host).sequence});
  }
  const Record& record_of(const WorkloadId& id) { return disk[id]; }
  std::set<ImageId> dropped() {
    std::set<ImageId> names;
    for (const HostId& host : {h1, h2, h3})
      for (const DropImageCall& drop : beat(host).drop) names.insert(drop.image);
    take();
    return names;
  }
};

TEST_F(ControlCloneTest, ASecondVmIsRaisedFromTheImageWhileTheFirstGoesOn) {
  const ImageId image = acknowledged();
  const AskId asked = clone(twins(), h2);
  const auto begun = take();
  EXPECT_EQ(all<Emit>(begun)[0].event.fields.at("image"), image.str());
  const auto raise = only_call<RaiseCall>(begun);
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.workload, twin);
  EXPECT_EQ(raise.what.image, image);
  EXPECT_EQ(raise.what.spec->vm.split->over[0].port, agent(h3).memory.port);
  agent(h2).instances.push_back({.id = raise.what.instance, .workload = twin, .epoch = raise.what.epoch, .state = InstanceState::running, .endpoint = {"10.0.0.9", 9}});
  const auto actions = done(raise.id, CallReply{.instance = raise.what.instance, .endpoint = {"10.0.0.9", 9}, .way = Way::image, .sequence = agent(h2).sequence});
  EXPECT_TRUE(answer_to(asked, actions).route);
  EXPECT_EQ(record_of(twin).raised_from, image);
  EXPECT_EQ(record_of(twin).image->origin, site);
  EXPECT_EQ(record().phase, OwnerPhase::up);
  EXPECT_THAT(calls<BuildCall>(pass(1s, {h1, h2, h3})), IsEmpty()) << "it can be raised from that image again";
}

TEST_F(ControlCloneTest, WithoutAHostItIsRaisedWhereTheImageIs) {
  acknowledged();
  clone(twins());
  const auto raise = only_call<RaiseCall>(take());
  EXPECT_TRUE(raise.what.image);
}

TEST_F(ControlCloneTest, WhatCannotBeClonedIsRefusedAndNothingIsLeftOfIt) {
  const auto build = only_call<BuildCall>(up(split()));
  EXPECT_THAT(refusal(clone(twins())), HasSubstr("no image of its current spec"));
  saved(build);  // on h1, with the share on h3
  beats({h1, h2, h3});
  EXPECT_THAT(refusal(clone(twins(), h2)), HasSubstr("lies on h1, not on h2"));
  WorkloadSpec same_name = twins();
  same_name.name = site;
  EXPECT_THAT(refusal(clone(same_name)), HasSubstr("a workload named site already"));
  WorkloadSpec same_host = twins();
  same_host.service.hosts = split().service.hosts;
  EXPECT_THAT(refusal(clone(same_host)), HasSubstr("leads to site already"));
  core().clone(++last_ask, WorkloadId("nobody"), twins(), {}, now);
  EXPECT_THAT(refusal(last_ask), HasSubstr("no workload is named"));
  EXPECT_FALSE(disk.contains(twin));
  EXPECT_THAT(core().workloads(), SizeIs(1));
}

TEST_F(ControlCloneTest, ManyAtOnceAreSpreadOverTheHostsWithTheImage) {
  acknowledged();
  std::map<HostId, int> raises;
  for (int i = 0; i < 4; ++i) {
    WorkloadSpec next = twins();
    next.name = WorkloadId(fmt::format("twin-{}", i));
    next.service.hosts = {next.name.str() + ".example"};
    clone(next);
    ++raises[only_call<RaiseCall>(take()).host];
  }
  // The origin is on h1.
  EXPECT_EQ(raises[h1], 2) << "the first goes to h2";
  EXPECT_EQ(raises[h2], 2);
}

TEST_F(ControlCloneTest, OneOfThoseWhoNeedTheImageSeesToItsCopies) {
  acknowledged();
  WorkloadSpec other = twins();
  other.name = WorkloadId("other");
  other.service.hosts = {"other.example"};
  clone(other, h2);
  const auto raise = only_call<RaiseCall>(take());
  agent(h2).instances.push_back({.id = raise.what.instance, .workload = other.name, .epoch = raise.what.epoch, .state = InstanceState::running, .endpoint = {"10.0.0.9", 9}});
  done(raise.id, CallReply{.instance = raise.what.instance, .endpoint = {"10.0.0.9", 9}, .way = Way::image, .sequence = agent(h2).sequence});
  cloned();
  // h1's store is lost.
  agent(h1).images.clear();
  std::vector<Made<PullCall>> pulls;
  for (int i = 0; i < 10; ++i) std::ranges::move(calls<PullCall>(pass(200ms, {h1, h2, h3})), std::back_inserter(pulls));
  ASSERT_THAT(pulls, SizeIs(1));
  EXPECT_EQ(pulls[0].what.spec.name, site);
  EXPECT_TRUE(core().remove(site, now));
  auto actions = take();
  agent(h1).instances.clear();
  for (int i = 0; i < 10; ++i) std::ranges::move(pass(200ms, {h1, h2, h3}), std::back_inserter(actions));
  const auto later = calls<PullCall>(actions);
  ASSERT_THAT(later, SizeIs(1));
  EXPECT_EQ(later[0].what.spec.name, other.name);
}

TEST_F(ControlCloneTest, TheImageStaysAsLongAsTheCloneLeansOnIt) {
  const ImageId first = acknowledged();
  cloned();
  EXPECT_THAT(dropped(), IsEmpty());
  // The origin goes on to a newer one.
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::all));
  copied(only_call<PullCall>(saved(build)));
  EXPECT_THAT(dropped(), IsEmpty());
  EXPECT_FALSE(record().image->is_or_needs(first));
  // It is removed, and its images with it, but not this one.
  EXPECT_TRUE(core().remove(site, now));
  take();
  agent(h1).instances.clear();
  EXPECT_THAT(dropped(), ::testing::Not(::testing::AnyOf(::testing::Contains(first), ::testing::Contains(share_of(first)))));
  EXPECT_TRUE(core().remove(twin, now));
  take();
  agent(h2).instances.clear();
  EXPECT_THAT(dropped(), ::testing::Contains(share_of(first)));
}

TEST_F(ControlCloneTest, ItsOwnFirstImageIsAFullOneAndFreesThatOfItsOrigin) {
  const ImageId first = acknowledged();
  cloned();
  EXPECT_TRUE(core().remove(site, now));
  take();
  agent(h1).instances.clear();
  beats({h1, h2, h3});
  EXPECT_TRUE(core().renew_image(twin, ControlCore::Extent::changes, now));
  const auto build = only_call<BuildCall>(take());
  EXPECT_EQ(build.what.spec.name, twin);
  EXPECT_FALSE(build.what.base);
  const ImageId own = build.what.image;
  const ImageReport image{.id = own, .workload = twin, .bytes = 1000, .member_of = {}, .base = {}, .members = {share_of(own)}};
  agent(build.host).images.push_back(image);
  agent(h3).images.push_back({.id = share_of(own), .workload = twin, .bytes = 500, .member_of = own, .base = {}});
  const auto pull = only_call<PullCall>(done(build.id, CallReply{.image = image, .sequence = agent(build.host).sequence, .detail = {}}));
  EXPECT_THAT(dropped(), ::testing::Not(::testing::Contains(first))) << "until its own one is acknowledged";
  EXPECT_EQ(record_of(twin).acknowledged->origin, site);
  copied(pull);
  EXPECT_THAT(dropped(), ::testing::Contains(share_of(first)));
  EXPECT_FALSE(record_of(twin).image->origin);
}

TEST_F(ControlCloneTest, ItIsNeverBegunAnewButTriedAgain) {
  acknowledged();
  cloned();
  core().ask(++last_ask, twin, record_of(twin).epoch, Evidence::refused, {}, now);
  auto actions = take();
  for (int tries = 0; tries < 8 && !calls<RaiseCall>(actions).empty(); ++tries) {
    const auto raise = only_call<RaiseCall>(actions);
    EXPECT_TRUE(raise.what.image) << tries;
    actions = failed(raise.id);
  }
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_EQ(record_of(twin).phase, OwnerPhase::absent);
  bool again = false;
  for (int i = 0; i < 200 && !again; ++i)
    for (const auto& raise : calls<RaiseCall>(pass(100ms, {h1, h2, h3}))) {
      EXPECT_TRUE(raise.what.image);
      again = again || raise.what.workload == twin;
    }
  EXPECT_TRUE(again) << "after a pause";
}

TEST_F(ControlCloneTest, AnotherSpecOfItsOriginWaitsUntilItHasAnImageOfItsOwn) {
  acknowledged();
  cloned();
  WorkloadSpec changed = split();
  changed.vm.memory_bytes = 128u << 20;
  core().deploy(++last_ask, changed, now);
  EXPECT_THAT(refusal(last_ask), HasSubstr("yado checkpoint twin"));
  EXPECT_EQ(record().spec, split());
  WorkloadSpec policy = split();
  policy.policy.relocations = 3;
  core().deploy(++last_ask, policy, now);
  EXPECT_TRUE(answer_to(last_ask, take()).route) << "that is no other image";
}

TEST_F(ControlCloneTest, AControlStartedAnewKnowsWhoseImageItIs) {
  const ImageId first = acknowledged();
  cloned();
  restart();
  for (int i = 0; i < 30; ++i) pass(100ms, {h1, h2, h3});
  EXPECT_THAT(dropped(), IsEmpty());
  EXPECT_EQ(record_of(twin).image->id, first);
  EXPECT_EQ(record_of(twin).image->origin, site);
}

}  // namespace
}  // namespace yado::control
