// Chains of incremental images: who is asked to merge what, when, and what is kept until all have.
#include "control/core/split_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;
using ::testing::ElementsAre;

struct ControlMergingTest : ControlSplitTest {
  /// The first image, acknowledged.
  void first() {
    copied(only_call<PullCall>(saved(only_call<BuildCall>(up(split())))));
    beats({h1, h2, h3});
  }
  /// One more delta, acknowledged, and reported by all.
  std::vector<Action> delta() {
    const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
    EXPECT_TRUE(build.what.base);
    std::vector<Action> actions = copied(only_call<PullCall>(saved(build)));
    std::ranges::move(beats({h1, h2, h3}), std::back_inserter(actions));
    return actions;
  }
  /// A chain that is one image too long: the first merge that is asked for.
  Made<MergeCall> too_long() {
    first();
    std::vector<Action> actions;
    while (disk[site].image->bases.size() + 1 <= core().settings().merge_images) {
      EXPECT_THAT(calls<MergeCall>(actions), IsEmpty()) << disk[site].image->bases.size();
      actions = delta();
    }
    return only_call<MergeCall>(actions);
  }
  /// As an agent does it: its shares need no base; the base is not named any more when all shares that it knows of are so.
  std::vector<Action> merged(const Made<MergeCall>& merge, bool last) {
    for (ImageReport& image : agent(merge.host).images)
      if (image.id == merge.what.image || image.member_of == merge.what.image) {
        image.merged = true;
        if (last) image.base.reset();
      }
    std::vector<Action> actions = done(merge.id, CallReply{.sequence = agent(merge.host).sequence});
    EXPECT_THAT(calls<MergeCall>(actions), IsEmpty()) << "before the host has said what it has now";
    std::ranges::move(beats({merge.host}), std::back_inserter(actions));
    return actions;
  }
  std::set<ImageId> dropped(const HostId& host) {
    std::set<ImageId> all;
    for (const DropImageCall& drop : beat(host).drop) all.insert(drop.image);
    return all;
  }
};

TEST_F(ControlMergingTest, OneHostAfterTheOtherMergesThenTheBasesGo) {
  Made<MergeCall> merge = too_long();
  const ImageId newest = disk[site].image->id;
  const std::vector<ImageId> bases = disk[site].image->bases;
  EXPECT_EQ(merge.host, h1);
  EXPECT_EQ(merge.what.image, newest);
  std::vector<ImageId> shares;
  for (const ImageId& base : bases) shares.push_back(share_of(base));
  shares.push_back(share_of(newest));
  EXPECT_EQ(named(merge.what.others), shares) << "what it has not";
  for (const PullCall::Member& other : merge.what.others) EXPECT_EQ(other.from, agent(h3).agent) << "whom a restore would ask, too";

  merge = only_call<MergeCall>(merged(merge, false));
  EXPECT_EQ(merge.host, h2);
  EXPECT_THAT(merge.what.others, IsEmpty()) << "it has everything";
  merge = only_call<MergeCall>(merged(merge, false));
  EXPECT_EQ(merge.host, h3);
  EXPECT_EQ(named(merge.what.others).size(), bases.size() + 1);
  std::vector<Action> actions = merged(merge, false);
  EXPECT_EQ(disk[site].image->bases, bases) << "somebody may still read them";
  // Now everybody learns that nobody is a delta any more.
  for (const HostId& host : {h1, h2, h3}) {
    merge = only_call<MergeCall>(actions);
    EXPECT_EQ(merge.host, host);
    if (host == h1) {
      EXPECT_THAT(named(merge.what.others), ElementsAre(share_of(newest)));
    }
    EXPECT_THAT(dropped(h2), IsEmpty());
    take();
    actions = merged(merge, true);
  }
  EXPECT_THAT(calls<MergeCall>(actions), IsEmpty());
  EXPECT_THAT(events(actions), Contains("image-merged"));
  EXPECT_EQ(disk[site].image->id, newest);
  EXPECT_THAT(disk[site].image->bases, IsEmpty());
  EXPECT_THAT(dropped(h1), Contains(bases.back()));
  take();
  // The next incremental one goes on from it.
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  EXPECT_EQ(build.what.base, newest);
  copied(only_call<PullCall>(saved(build)));
  EXPECT_THAT(disk[site].image->bases, ElementsAre(newest));
}

TEST_F(ControlMergingTest, ANewerDeltaMeanwhileIsKeptAndWhatWasBegunIsFinished) {
  Made<MergeCall> merge = too_long();
  const ImageId target = merge.what.image;
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  EXPECT_EQ(build.what.base, target);
  std::vector<Action> actions = merged(merge, false);
  EXPECT_THAT(calls<MergeCall>(actions), IsEmpty()) << "while an image is taken";
  actions = copied(only_call<PullCall>(saved(build)));
  std::ranges::move(beats({h1, h2, h3}), std::back_inserter(actions));
  for (int calls = 0; calls < 10 && !disk[site].image->bases.empty() && disk[site].image->bases.front() != target; ++calls) {
    merge = only_call<MergeCall>(actions);
    EXPECT_EQ(merge.what.image, target);
    actions = merged(merge, std::ranges::all_of(agents, [&](const auto& entry) {
      return std::ranges::all_of(entry.second.images, [&](const ImageReport& image) { return image.merged || (image.id != target && image.member_of != target); });
    }));
  }
  EXPECT_EQ(disk[site].image->id, build.what.image);
  EXPECT_THAT(disk[site].image->bases, ElementsAre(target));
}

TEST_F(ControlMergingTest, AFailureIsTriedAgainAfterAPause) {
  const auto merge = too_long();
  const std::vector<ImageId> bases = disk[site].image->bases;
  auto actions = failed(merge.id, Errc::canceled);
  EXPECT_THAT(events(actions), Contains("image-merge-failed"));
  EXPECT_THAT(calls<MergeCall>(actions), IsEmpty());
  EXPECT_EQ(only_call<MergeCall>(pass(3000ms, {h1, h2, h3})).host, merge.host);
  EXPECT_EQ(disk[site].image->bases, bases);
}

TEST_F(ControlMergingTest, AnImageThatIsPartlyOnASilentHostIsLeftAlone) {
  const auto merge = too_long();
  const auto pull = only_call<PullCall>(silence({h1, h2}));  // of what that host saved there is one copy now, on h2
  EXPECT_EQ(pull.host, h1);
  copied(pull);
  const auto actions = merged(merge, false);
  EXPECT_THAT(calls<MergeCall>(actions), IsEmpty());
  EXPECT_THAT(calls<MergeCall>(pass(5000ms, {h1, h2})), IsEmpty());
  EXPECT_FALSE(calls<MergeCall>(beats({h1, h2, h3})).empty()) << "it is back";
}

TEST_F(ControlMergingTest, WhatIsRaisedOrWasRaisedFromAnImageKeepsItAsItIs) {
  const auto merge = too_long();
  failed(merge.id, Errc::canceled);
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  EXPECT_THAT(calls<MergeCall>(pass(3000ms, {h1, h2, h3})), IsEmpty());
  agent(h1).instances.clear();
  auto actions = raised(raise);
  std::ranges::move(pass(3000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_THAT(calls<MergeCall>(actions), IsEmpty()) << "pages of it may still be in the images";
}

TEST_F(ControlMergingTest, AControlThatWasRestartedGoesOnWithWhatTheReportsSay) {
  const auto merge = only_call<MergeCall>(merged(too_long(), false));
  ASSERT_EQ(merge.host, h2);
  restart();
  const auto again = only_call<MergeCall>(pass(core().settings().reconnect + 1000ms, {h1, h2, h3}));
  EXPECT_EQ(again.host, h2);
  EXPECT_EQ(again.what.image, merge.what.image);
}

TEST_F(ControlMergingTest, AHostThatWasAwayWhenTheBasesWentIsNoHolder) {
  Made<MergeCall> merge = too_long();
  const std::vector<ImageReport> before = agent(h2).images;
  const ImageId newest = merge.what.image;
  for (int calls = 0; calls < 6; ++calls) {
    const auto actions = merged(merge, calls >= 3);
    if (calls < 5) merge = only_call<MergeCall>(actions);
  }
  ASSERT_THAT(disk[site].image->bases, IsEmpty());
  agent(h2).images = before;  // from a backup, say
  EXPECT_EQ(dropped(h2), std::set<ImageId>{newest}) << "its share and its bases follow, when nothing here needs them any more";
  for (const WorkloadView& view : core().workloads()) EXPECT_THAT(view.image_holders, ElementsAre(h1));
}

TEST_F(ControlMergingTest, ALimitOfOneCheckpointIsPassedOnOnce) {
  first();
  ASSERT_TRUE(core().renew_image(site, ControlCore::Extent::changes, now, 50u << 20));
  const auto limited = only_call<BuildCall>(take());
  EXPECT_EQ(limited.what.bytes_per_second, 50u << 20);
  copied(only_call<PullCall>(saved(limited)));
  EXPECT_EQ(only_call<BuildCall>(checkpoint(ControlCore::Extent::changes)).what.bytes_per_second, 0u);
  const Status tiny = core().renew_image(site, ControlCore::Extent::changes, now, 1000);
  ASSERT_FALSE(tiny);
  EXPECT_EQ(tiny.error().code, Errc::invalid_argument);
  EXPECT_THAT(tiny.error().message, HasSubstr("bytes_per_second: must be at least 1048576"));
}

TEST_F(ControlMergingTest, OnlyAVmWithSplitMemoryHasALimit) {
  up(spec(Consistency::shared, StandbyLevel::image));
  const Status asked = core().renew_image(site, ControlCore::Extent::all, now, 50u << 20);
  ASSERT_FALSE(asked);
  EXPECT_EQ(asked.error().code, Errc::conflict);
}

}  // namespace
}  // namespace yado::control
