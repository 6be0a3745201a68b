// An image of a VM with split memory is several: each of its parts has to outlive any one host.
#include "control/core/split_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;
using ::testing::ElementsAre;
using ::testing::Not;

struct ControlImageCopiesTest : ControlSplitTest {
  bool redundant() {
    for (const WorkloadView& view : core().workloads())
      if (view.record.spec.name == site) return view.image_redundant;
    return false;
  }
  /// Of three hosts only these two are there: h1, where it runs, and h2, which saves a share. The first copy is on its way to h2.
  Made<PullCall> of_two() {
    sharer = h2;
    agents.erase(h3);
    return only_call<PullCall>(saved(only_call<BuildCall>(up(split(), {h1, h2}))));
  }
  /// h1 has the main image, h3 saved a share, and h2 has a copy of everything.
  ImageId of_three() {
    const auto pull = only_call<PullCall>(saved(only_call<BuildCall>(up(split()))));
    copied(pull);
    beats({h1, h2, h3});
    EXPECT_TRUE(redundant());
    return pull.what.image;
  }
};

TEST_F(ControlImageCopiesTest, TheCopyGoesWhereNoShareWasSaved) {
  sharer = h2;
  const auto pull = only_call<PullCall>(saved(only_call<BuildCall>(up(split()))));
  EXPECT_EQ(pull.host, h3);
  EXPECT_FALSE(pull.what.shares_only);
  const auto actions = copied(pull);
  EXPECT_THAT(events(actions), Contains("image-acknowledged"));
  EXPECT_THAT(calls<PullCall>(actions), IsEmpty());
}

TEST_F(ControlImageCopiesTest, TheCopyOfADeltaGoesWhereItsBasesAreAlsoWhenThatHostSavedAShareOfIt) {
  const ImageId full = of_three();
  const HostId h4("h4");
  agent(h4).memory = {agent(h4).agent.address, 7100};
  beats({h4});
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  sharer = h2;
  const auto pull = only_call<PullCall>(saved(build));
  EXPECT_EQ(pull.host, h2) << "h4 has nothing of " << full.str();
  const auto share = only_call<PullCall>(copied(pull));
  EXPECT_EQ(share.host, h1);
  EXPECT_THAT(named(share.what.members), ElementsAre(share_of(build.what.image)));
  EXPECT_THAT(events(copied(share)), Contains("image-acknowledged"));
}

TEST_F(ControlImageCopiesTest, WhereOnlyWhoSavedAShareCanHaveTheCopyTheMainHostGetsThatShare) {
  const auto first = of_two();
  EXPECT_EQ(first.host, h2);
  auto actions = copied(first);
  EXPECT_THAT(events(actions), Not(Contains("image-acknowledged"))) << "the share is on h2 only";
  EXPECT_FALSE(redundant());
  const auto second = only_call<PullCall>(actions);
  EXPECT_EQ(second.host, h1);
  EXPECT_TRUE(second.what.shares_only);
  EXPECT_THAT(named(second.what.members), ElementsAre(share_of(first.what.image)));
  actions = copied(second);
  std::ranges::move(pass(2000ms, {h1, h2}), std::back_inserter(actions));
  EXPECT_EQ(std::ranges::count(events(actions), "image-acknowledged"), 1);
  EXPECT_THAT(all<Call>(actions), IsEmpty());
  EXPECT_TRUE(redundant());
  EXPECT_THAT(beat(h1).drop, IsEmpty());
}

TEST_F(ControlImageCopiesTest, ThenTheDeathOfTheHostWithTheCopyCostsNothing) {
  const auto first = of_two();
  copied(only_call<PullCall>(copied(first)));
  std::vector<Action> actions = silence({h1});
  agent(h1).instances.clear();
  std::ranges::move(ask(Evidence::refused, {}, h1), std::back_inserter(actions));
  const auto raise = only_call<RaiseCall>(actions);
  EXPECT_EQ(raise.host, h1);
  EXPECT_EQ(raise.what.image, first.what.image);
  EXPECT_THAT(raise.what.spec->vm.split->over, IsEmpty()) << "nobody is left to be asked, and nobody has to be";
}

TEST_F(ControlImageCopiesTest, ADeltaWaitsUntilItsBaseOutlivesAnyHost) {
  const auto first = of_two();
  const auto second = only_call<PullCall>(copied(first));
  EXPECT_THAT(calls<BuildCall>(checkpoint(ControlCore::Extent::changes)), IsEmpty());
  const auto build = only_call<BuildCall>(copied(second));
  EXPECT_EQ(build.what.base, first.what.image);
  // And of it, too, the share is copied to h1, with that of its base if it were not there.
  const auto whole = only_call<PullCall>(saved(build));
  agent(h1).images.erase(std::ranges::find(agent(h1).images, share_of(first.what.image), &ImageReport::id));
  beat(h1);
  const auto share = only_call<PullCall>(copied(whole));
  EXPECT_EQ(share.host, h1);
  EXPECT_THAT(named(share.what.members), ElementsAre(share_of(first.what.image), share_of(build.what.image)));
}

TEST_F(ControlImageCopiesTest, WithParityWhoKeepsNoneOfTheMemoryAnyMoreIsNotCountedOn) {
  const HostId h4("h4"), h5("h5"), h6("h6");
  for (const HostId& host : {h4, h5, h6}) agent(host).memory = {agent(host).agent.address, 7100};
  WorkloadSpec wanted = split();
  wanted.vm.split->redundancy = Redundancy::parity;
  wanted.vm.split->over = {{.host = h3, .address = {}}, {.host = h4, .address = {}}, {.host = h5, .address = {}}};
  copied(only_call<PullCall>(saved(only_call<BuildCall>(up(wanted, {h1, h2, h3, h4, h5, h6})))));
  EXPECT_TRUE(redundant());
  // Its memory moves away from h3, which saved the share that h1 has not.
  wanted.vm.split->over[0].host = h6;
  core().resplit(++last_ask, site, *wanted.vm.split, now);
  const auto actions = take();
  done(only_call<ResplitCall>(actions).id, CallReply{.sequence = agent(h1).sequence});
  EXPECT_FALSE(redundant());
  const auto pull = only_call<PullCall>(actions);
  EXPECT_EQ(pull.host, h1);
  copied(pull);
  EXPECT_TRUE(redundant());
}

TEST_F(ControlImageCopiesTest, WhatASilentHostSavedIsCopiedAgain) {
  const ImageId image = of_three();
  const auto pull = only_call<PullCall>(silence({h1, h2}));
  EXPECT_EQ(pull.host, h1);
  EXPECT_THAT(pull.what.members, ElementsAre(PullCall::Member{share_of(image), agent(h2).agent}));
  EXPECT_FALSE(redundant());
  copied(pull);
  EXPECT_TRUE(redundant());
}

struct ControlAcknowledgedImageTest : ControlImageCopiesTest {
  /// There is `first`, of which h2 has a copy, and on h1, with a share on h3, the next one: nowhere else.
  Made<BuildCall> next(ControlCore::Extent extent) {
    const auto build = only_call<BuildCall>(checkpoint(extent));
    pull_ = only_call<PullCall>(saved(build));
    for (const HostId& host : {h1, h2, h3}) EXPECT_THAT(beat(host).drop, IsEmpty()) << host.str();
    return build;
  }
  Made<RaiseCall> after_the_death_of_h1() { return only_call<RaiseCall>(silence({h2, h3})); }
  std::set<ImageId> dropped() {
    std::set<ImageId> all;
    for (const HostId& host : {h1, h2, h3})
      for (bool more = true; more;) {
        more = false;
        for (const DropImageCall& drop : beat(host).drop) more |= std::erase_if(agent(host).images, [&](const ImageReport& held) { return held.id == drop.image; }) > 0, all.insert(drop.image);
      }
    return all;
  }
  const ImageId first = of_three();
  Made<PullCall> pull_;
};

TEST_F(ControlAcknowledgedImageTest, TheLastOneThatOutlivesAnyHostIsKeptUntilTheNextDoes) {
  const ImageId second = next(ControlCore::Extent::all).what.image;
  EXPECT_THAT(dropped(), IsEmpty());
  EXPECT_THAT(events(copied(pull_)), Contains("image-acknowledged"));
  EXPECT_EQ(dropped(), (std::set<ImageId>{first, share_of(first)}));
  EXPECT_EQ(after_the_death_of_h1().what.image, second);
}

TEST_F(ControlAcknowledgedImageTest, AndIsRaisedFromWhenTheNextIsLostWithItsHost) {
  const ImageId second = next(ControlCore::Extent::all).what.image;
  const auto raise = after_the_death_of_h1();
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.image, first);
  EXPECT_EQ(record().image->id, first);
  EXPECT_FALSE(record().acknowledged);
  const auto& instance = stands(raise.host, raise.what.instance, Purpose::owner, raise.what.epoch);
  done(raise.id, reply_of(raise.host, instance, Way::image));
  EXPECT_EQ(record().raised_from, first);
  failed(pull_.id, Errc::unavailable);
  // What comes back of the lost one is of a life that is over.
  agent(h1).instances.clear();
  beats({h1, h2, h3});
  EXPECT_EQ(dropped(), (std::set<ImageId>{second, share_of(second)}));
}

TEST_F(ControlAcknowledgedImageTest, AlsoWhenThatIsADeltaOfIt) {
  next(ControlCore::Extent::changes);
  EXPECT_THAT(record().image->bases, ElementsAre(first));
  EXPECT_EQ(after_the_death_of_h1().what.image, first);
  EXPECT_THAT(record().image->bases, IsEmpty());
}

TEST_F(ControlAcknowledgedImageTest, AlsoByAControlThatWasStartedAnew) {
  next(ControlCore::Extent::all);
  restart();
  pass(core().settings().reconnect, {h1, h2, h3});
  EXPECT_EQ(after_the_death_of_h1().what.image, first);
}

TEST_F(ControlAcknowledgedImageTest, NotWhileTheNextCanBeHad) {
  const ImageId second = next(ControlCore::Extent::changes).what.image;
  agent(h1).instances.clear();
  core().instance_exited(h1, record().instance, site, now);
  const auto raise = only_call<RaiseCall>(take());
  EXPECT_EQ(raise.host, h1);
  EXPECT_EQ(raise.what.image, second);
  // It does not load, and there is no other copy.
  const auto again = only_call<RaiseCall>(failed(raise.id, Errc::corrupt));
  EXPECT_EQ(again.what.image, first);
  EXPECT_EQ(record().image->id, first);
}

TEST_F(ControlAcknowledgedImageTest, NotOfAnEarlierSpec) {
  next(ControlCore::Extent::all);
  WorkloadSpec changed = split();
  changed.vm.memory_bytes *= 2;
  deploy(changed);
  EXPECT_FALSE(after_the_death_of_h1().what.image);
}

TEST_F(ControlAcknowledgedImageTest, NothingIsKeptOfARemovedOne) {
  const ImageId second = next(ControlCore::Extent::all).what.image;
  ASSERT_TRUE(core().remove(site, now));
  take();
  EXPECT_EQ(dropped(), (std::set<ImageId>{first, share_of(first), second, share_of(second)}));
}

TEST_F(ControlImageCopiesTest, AHostThatIsOnlyLateIsWaitedFor) {
  of_three();
  knock[h3] = ProbeAnswer::listening;
  EXPECT_THAT(calls<PullCall>(pass(400ms, {h1, h2})), IsEmpty());
  EXPECT_THAT(calls<PullCall>(pass(400ms, {h1, h2, h3})), IsEmpty());
}

TEST_F(ControlImageCopiesTest, AShareThatItsSaverLostIsCopiedFromWhoHasIt) {
  const ImageId image = of_three();
  agent(h3).images.clear();
  now += 1ms;
  const auto pull = only_call<PullCall>(beats({h3}));
  EXPECT_EQ(pull.host, h1);
  EXPECT_THAT(pull.what.members, ElementsAre(PullCall::Member{share_of(image), agent(h2).agent}));
}

TEST_F(ControlImageCopiesTest, AShareThatNobodyHasAnyMoreMakesANewImage) {
  of_three();
  agent(h3).images.clear();
  now += 1ms;
  const auto pull = only_call<PullCall>(beats({h3}));
  std::erase_if(agent(h2).images, [](const ImageReport& image) { return image.member_of.has_value(); });
  beat(h2);
  auto actions = failed(pull.id, Errc::unavailable);
  std::ranges::move(pass(2000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_THAT(calls<PullCall>(actions), IsEmpty()) << "there is nothing to copy";
  EXPECT_FALSE(only_call<BuildCall>(actions).what.base);
}

TEST_F(ControlImageCopiesTest, WhatASaverHasNotReportedYetIsThere) {
  const auto build = only_call<BuildCall>(up(split()));
  const ImageReport image{.id = build.what.image, .workload = site, .member_of = {}, .base = {}, .members = {share_of(build.what.image)}};
  agent(h1).images.push_back(image);
  const auto pull = only_call<PullCall>(done(build.id, CallReply{.image = image, .sequence = agent(h1).sequence}));
  agent(h2).images = {image, {.id = share_of(image.id), .workload = site, .member_of = image.id, .base = {}}};
  const auto actions = done(pull.id, CallReply{.image = image, .sequence = agent(h2).sequence});
  EXPECT_THAT(calls<PullCall>(actions), IsEmpty());
  EXPECT_THAT(events(actions), Contains("image-acknowledged"));
  now += 1ms;
  EXPECT_THAT(calls<PullCall>(beats({h3})), SizeIs(1)) << "it has reported, and has nothing";
}

TEST_F(ControlImageCopiesTest, AControlThatWasJustStartedAsksEverybodyBeforeItBeginsAnew) {
  const ImageId image = of_three();
  restart();
  agent(h1).instances.clear();
  agent(h1).images.clear();
  EXPECT_THAT(calls<RaiseCall>(beats({h1})), IsEmpty()) << "nobody else has spoken yet";
  EXPECT_GT(core().next_deadline(), now) << "it waits, and does not look again and again";
  now += 100ms;
  EXPECT_THAT(calls<RaiseCall>(beats({h1, h3})), IsEmpty());
  now += 100ms;
  const auto raise = only_call<RaiseCall>(beats({h2}));
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.image, image);
}

TEST_F(ControlImageCopiesTest, AndBeginsAnewWhatNobodyHasInTheEnd) {
  of_three();
  restart();
  agent(h1).instances.clear();
  agent(h1).images.clear();
  EXPECT_THAT(calls<RaiseCall>(beats({h1, h3})), IsEmpty());
  EXPECT_THAT(calls<RaiseCall>(pass(core().settings().reconnect - 100ms, {h1, h3})), IsEmpty());
  EXPECT_FALSE(only_call<RaiseCall>(pass(200ms, {h1, h3})).what.image);
}

TEST_F(ControlImageCopiesTest, IsNotBegunAnewWhileWhoSavedAShareIsOnlyLate) {
  const auto build = only_call<BuildCall>(up(split()));
  saved(build);  // the copy to h2 is under way
  beats({h1, h2, h3});
  for (bool late = false; !late && now < Instant(2h);) {
    now += 50ms;
    for (const HostId& host : {h1, h2}) beat(host);
    core().tick(now);
    late = std::ranges::any_of(all<ProbeHost>(core().take()), [](const ProbeHost& probe) { return probe.host == h3; });
  }
  agent(h1).instances.clear();
  core().instance_exited(h1, record().instance, site, now);
  EXPECT_THAT(calls<RaiseCall>(core().take()), IsEmpty()) << "the probe is not answered yet";
  beat(h3);
  core().tick(now);
  const auto raise = only_call<RaiseCall>(take());
  EXPECT_EQ(raise.what.image, build.what.image);
}

}  // namespace
}  // namespace yado::control
