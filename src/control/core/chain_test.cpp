// Incremental images of VMs with split memory: what a delta may go on from, and what is kept for its sake.
#include "control/core/split_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct ControlChainTest : ControlSplitTest {
  /// It runs on h1, and its full image is on two hosts.
  ImageId acknowledged() {
    const auto build = only_call<BuildCall>(up(split()));
    EXPECT_FALSE(build.what.base);
    copied(only_call<PullCall>(saved(build)));
    return build.what.image;
  }
  /// One more delta, acknowledged.
  ImageId delta() {
    const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
    EXPECT_TRUE(build.what.base);
    copied(only_call<PullCall>(saved(build)));
    return build.what.image;
  }
  /// Its host falls silent.
  void raised_on_h2(Way way) {
    const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
    ASSERT_EQ(raise.host, h2);
    EXPECT_TRUE(raise.what.image);
    agent(h1).instances.clear();
    done(raise.id, reply_of(h2, stands(h2, raise.what.instance, Purpose::owner, raise.what.epoch), way));
  }
  std::set<ImageId> held(const HostId& host) {
    std::set<ImageId> all;
    for (const ImageReport& image : agent(host).images) all.insert(image.id);
    return all;
  }
  /// Hosts do what they are told, as a store does: nothing goes that something else there needs. Until nobody is told anything.
  void sweep() {
    for (bool told = true; told;) {
      told = false;
      for (const HostId& host : {h1, h2, h3})
        for (const DropImageCall& drop : beat(host).drop) {
          told = true;
          auto& images = agent(host).images;
          for (const ImageReport& image : images) {
            EXPECT_NE(image.base, drop.image) << drop.image.str() << " on " << host.str() << ": " << image.id.str() << " is a delta of it";
            EXPECT_NE(share_of(image.id), drop.image) << "its main image is there";
          }
          std::erase_if(images, [&](const ImageReport& image) { return image.id == drop.image; });
        }
    }
    take();
  }
  static std::string detail(const std::vector<Action>& actions) {
    for (const Emit& emit : all<Emit>(actions))
      if (emit.event.kind == "image") return emit.event.fields.at("detail");
    return {};
  }
};

TEST_F(ControlChainTest, ADeltaGoesOnFromTheAcknowledgedImageAndItsSharersAreNamed) {
  const ImageId full = acknowledged();
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  EXPECT_EQ(build.host, record().host);
  EXPECT_EQ(build.what.base, full);
  EXPECT_THAT(build.what.peers, Contains(HostAddress{h3, agent(h3).agent}));
  saved(build);
  EXPECT_EQ(disk[site].image->id, build.what.image);
  EXPECT_THAT(disk[site].image->bases, ::testing::ElementsAre(full));
}

TEST_F(ControlChainTest, WhoCopiesADeltaGetsItsBasesFirst) {
  const ImageId full = acknowledged();
  const ImageId first = delta();
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  agent(h2).images.clear();  // the copies are lost: all of the chain is missing there
  beat(h2);
  take();
  const auto pull = only_call<PullCall>(saved(build));
  EXPECT_THAT(named(pull.what.members), ::testing::ElementsAre(share_of(full), full, share_of(first), first, share_of(build.what.image)));
  EXPECT_EQ(pull.what.image, build.what.image);
}

TEST_F(ControlChainTest, ACopyIsMadeOnceAlsoWhenItsHostHasNotReportedItsBasesYet) {
  acknowledged();
  delta();
  sweep();
  agent(h2).images.clear();
  const auto pull = only_call<PullCall>(beats({h2}));
  const ImageReport image{.id = pull.what.image, .workload = site};
  const auto actions = done(pull.id, CallReply{.image = image, .sequence = agent(pull.host).sequence});
  EXPECT_THAT(events(actions), Contains("image-copied"));
  EXPECT_THAT(calls<PullCall>(actions), IsEmpty());
}

TEST_F(ControlChainTest, AnImageIsOnAHostOnlyWithItsWholeChain) {
  const ImageId full = acknowledged();
  delta();
  sweep();
  auto& images = agent(h2).images;
  std::erase_if(images, [&](const ImageReport& image) { return image.id == full; });
  const auto pull = only_call<PullCall>(beats({h2}));
  EXPECT_EQ(pull.host, h2);
  EXPECT_FALSE(only_call<RaiseCall>(silence({h2, h3})).what.image) << "a delta without its base is nothing";
}

TEST_F(ControlChainTest, NothingOfAChainIsDroppedAlsoByAControlThatWasRestarted) {
  const ImageId full = acknowledged();
  const ImageId first = delta(), second = delta();
  sweep();
  const auto chain = std::set<ImageId>{full, first, second};
  const auto shares = std::set<ImageId>{share_of(full), share_of(first), share_of(second)};
  EXPECT_EQ(held(h1), chain);
  EXPECT_EQ(held(h3), shares);
  restart();
  for (const HostId& host : {h3, h2, h1}) EXPECT_THAT(beat(host).drop, IsEmpty()) << host.str();
}

TEST_F(ControlChainTest, AFullImageEndsTheChainAndNothingOfItIsLeft) {
  acknowledged();
  delta();
  delta();
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::all));
  EXPECT_FALSE(build.what.base);
  sweep();
  EXPECT_THAT(held(h1), SizeIs(3)) << "dropped before there is another";
  copied(only_call<PullCall>(saved(build)));
  EXPECT_THAT(disk[site].image->bases, IsEmpty());
  sweep();
  EXPECT_EQ(held(h1), std::set<ImageId>{build.what.image});
  EXPECT_EQ(held(h2), (std::set<ImageId>{build.what.image, share_of(build.what.image)}));
  EXPECT_EQ(held(h3), std::set<ImageId>{share_of(build.what.image)});
}

TEST_F(ControlChainTest, WhoWasRaisedFromAnImageGoesOnFromIt) {
  const ImageId full = acknowledged();
  raised_on_h2(Way::image);
  EXPECT_EQ(disk[site].raised_from, full);
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  EXPECT_EQ(build.what.base, full);
  saved(build);
  EXPECT_THAT(disk[site].image->bases, ::testing::ElementsAre(full));
  // And from what was saved of it then, also by a control that was restarted.
  restart();
  EXPECT_EQ(disk[site].image->of, disk[site].instance);
}

TEST_F(ControlChainTest, AfterAnotherOwnerBeganAnewTheNextIsFullAndSaysWhy) {
  const ImageId full = acknowledged();
  raised_on_h2(Way::cold);
  EXPECT_FALSE(disk[site].raised_from);
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  EXPECT_FALSE(build.what.base);
  const std::string why = detail(saved(build));
  EXPECT_THAT(why, HasSubstr(full.str()));
  EXPECT_THAT(why, HasSubstr("in 5 ms"));
}

TEST_F(ControlChainTest, WhatAnEarlierOwnerWasRaisedFromIsNoBase) {
  acknowledged();
  raised_on_h2(Way::image);
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h2));
  EXPECT_FALSE(disk[site].raised_from) << "before it is known how";
  agent(h2).instances.clear();
  raised(raise);  // cold
  EXPECT_FALSE(only_call<BuildCall>(checkpoint(ControlCore::Extent::changes)).what.base);
}

/// h1 has the main image, and h3 the share that it saved.
TEST_F(ControlChainTest, WhoSavedAShareIsAskedForItAlsoWhenItIsToKeepNone) {
  const auto first = only_call<BuildCall>(up(split()));
  saved(first);
  beats({h1, h2, h3});
  core().restore(++last_ask, site, h1, Split{.local_bytes = 64u << 20, .over = {}}, now);
  const auto raise = only_call<RaiseCall>(take());
  ASSERT_EQ(raise.host, h1);
  EXPECT_EQ(raise.what.image, first.what.image);
  ASSERT_THAT(raise.what.spec->vm.split->over, SizeIs(1));
  const MemoryHost& saver = raise.what.spec->vm.split->over.front();
  EXPECT_EQ(saver.host, h3);
  EXPECT_TRUE(saver.leaving);
  EXPECT_EQ(saver.port, agent(h3).memory.port);
  EXPECT_EQ(saver.bytes, 500u);
  EXPECT_THAT(*record().memory_hosts, IsEmpty()) << "from then on";
}

TEST_F(ControlChainTest, ARestoreThatCannotHaveAShareIsRefusedAndWhatRunsGoesOn) {
  const auto first = only_call<BuildCall>(up(split()));
  saved(first);
  beats({h1, h2, h3});
  const AskId elsewhere = ++last_ask;
  core().restore(elsewhere, site, h2, std::nullopt, now);
  EXPECT_THAT(answer_to(elsewhere, take()).route.error().message, HasSubstr("is not on h2"));
  // With parity its groups are of those that keep it.
  const AskId parity = ++last_ask;
  core().restore(parity, site, h1, Split{.local_bytes = 16u << 20, .over = {{.host = h2, .address = {}}}, .redundancy = Redundancy::parity}, now);
  EXPECT_THAT(answer_to(parity, take()).route.error().message, HasSubstr("with parity"));
  silence({h1, h2});
  const AskId dead = ++last_ask;
  core().restore(dead, site, h1, std::nullopt, now);
  const auto actions = take();
  EXPECT_THAT(answer_to(dead, actions).route.error().message, HasSubstr("h3, which saved it, cannot be asked"));
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty());
  EXPECT_EQ(record().phase, OwnerPhase::up);
}

TEST_F(ControlChainTest, ARestoreOnAHostThatDoesNotAnswerSaysSo) {
  acknowledged();
  beats({h1, h2, h3});
  knock[h2] = ProbeAnswer::listening;
  while (all<ProbeHost>(pass(100ms, {h1, h3})).empty()) {}
  const AskId asked = ++last_ask;
  core().restore(asked, site, h2, std::nullopt, now);
  const auto actions = take();
  EXPECT_THAT(answer_to(asked, actions).route.error().message, HasSubstr("does not answer just now"));
  EXPECT_THAT(calls<RaiseCall>(actions), IsEmpty()) << "what runs goes on";
}

TEST_F(ControlChainTest, ASuspectThatAnswersIsAskedBeforeItsMemoryIsGivenUp) {
  const auto first = only_call<BuildCall>(up(split()));
  saved(first);  // not copied yet
  beats({h1, h2, h3});
  const auto raise = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  EXPECT_EQ(raise.host, h1);
  EXPECT_EQ(raise.what.image, first.what.image);
  const auto anew = only_call<RaiseCall>(failed(raise.id));
  EXPECT_FALSE(anew.what.image) << "it was tried there in vain";
  EXPECT_NE(anew.host, h1);
}

TEST_F(ControlChainTest, AfterAFailedRaiseItIsTriedThereAgainWithOtherMemoryHostsAndThenBegunAnew) {
  const ImageId full = acknowledged();
  const auto first = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  ASSERT_EQ(first.host, h2);
  ASSERT_EQ(first.what.spec->vm.split->over[0].host, h3);
  // Its memory host was dead, which nobody knew yet; so is the host where it was.
  agent(h1).instances.clear();
  EXPECT_THAT(calls<RaiseCall>(silence({h2})), IsEmpty()) << "it is under way";
  const auto again = only_call<RaiseCall>(failed(first.id));
  EXPECT_EQ(again.host, h2);
  EXPECT_EQ(again.what.image, full);
  EXPECT_THAT(again.what.spec->vm.split->over, IsEmpty());
  const auto anew = only_call<RaiseCall>(failed(again.id));
  EXPECT_EQ(anew.host, h2);
  EXPECT_FALSE(anew.what.image);
  EXPECT_THAT(calls<RaiseCall>(failed(anew.id)), IsEmpty()) << "that was all";
}

TEST_F(ControlChainTest, WhereItFailedOnceIsNotTakenForItsImageWhileAnotherHolderIsOnlyLate) {
  acknowledged();
  const auto first = only_call<RaiseCall>(ask(Evidence::silent, {}, h1));
  ASSERT_EQ(first.host, h2);
  agent(h1).instances.clear();
  for (bool late = false; !late && now < Instant(2h);) {
    now += 50ms;
    for (const HostId& host : {h2, h3}) beat(host);
    core().tick(now);
    late = std::ranges::any_of(all<ProbeHost>(core().take()), [](const ProbeHost& probe) { return probe.host == h1; });
  }
  core().call_done(first.id, fail(Errc::application, "it is damaged"), now);
  EXPECT_THAT(calls<RaiseCall>(core().take()), IsEmpty()) << "h1 has it, too, and may speak again";
  beat(h1);
  core().tick(now);
  const auto again = only_call<RaiseCall>(take());
  EXPECT_EQ(again.host, h1);
  EXPECT_TRUE(again.what.image);
}

TEST_F(ControlChainTest, ARestoreWhereItDoesNotFitChangesNothing) {
  acknowledged();
  agent(h2).memory_free_bytes = 1u << 20;
  beat(h2);
  take();
  const AskId asked = ++last_ask;
  core().restore(asked, site, h2, Split{.local_bytes = 64u << 20, .over = {}}, now);
  const auto actions = take();
  EXPECT_THAT(answer_to(asked, actions).route.error().message, HasSubstr("too little memory free"));
  EXPECT_THAT(all<Call>(actions), IsEmpty());
  EXPECT_THAT(all<Persist>(actions), IsEmpty());
  EXPECT_EQ(record().spec, split());
}

TEST_F(ControlChainTest, ARestoreWhileItsMemoryIsBeingMovedIsRefused) {
  acknowledged();
  Split over_h2 = *split().vm.split;
  over_h2.over[0].host = h2;
  core().resplit(++last_ask, site, over_h2, now);
  take();
  const AskId asked = ++last_ask;
  core().restore(asked, site, h2, std::nullopt, now);
  EXPECT_THAT(answer_to(asked, take()).route.error().message, HasSubstr("is being moved"));
  EXPECT_EQ(record().phase, OwnerPhase::up);
}

TEST_F(ControlChainTest, TheHostThatAPersonNamedIsNotWorthAMemoryThatGoesOnElsewhere) {
  const ImageId full = acknowledged();
  const AskId asked = ++last_ask;
  core().restore(asked, site, h1, std::nullopt, now);
  auto actions = take();
  const auto first = only_call<RaiseCall>(actions);
  ASSERT_EQ(first.host, h1);
  silence({h1, h2});  // h3, whose share h1 has to ask for
  core().call_done(first.id, fail(Errc::stale_epoch, "a gate was here"), now);
  actions = take();
  EXPECT_THAT(answer_to(asked, actions).route.error().message, HasSubstr("cannot be moved to h1"));
  const auto raise = only_call<RaiseCall>(actions);
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.image, full);
}

TEST_F(ControlChainTest, AnImageWithAShareOnADeadHostIsRaisedWhereACopyOfTheShareIs) {
  const ImageId full = acknowledged();
  std::vector<Action> actions = silence({h1, h2});
  agent(h1).instances.clear();
  std::ranges::move(ask(Evidence::refused, {}, h1), std::back_inserter(actions));
  const auto raise = only_call<RaiseCall>(actions);
  EXPECT_EQ(raise.host, h2);
  EXPECT_EQ(raise.what.image, full);
}

TEST_F(ControlChainTest, WhatIsNotAcknowledgedIsCopiedBeforeADeltaGoesOnFromIt) {
  const auto first = only_call<BuildCall>(up(split()));
  const auto pull = only_call<PullCall>(saved(first));
  EXPECT_THAT(calls<BuildCall>(checkpoint(ControlCore::Extent::changes)), IsEmpty());
  const auto actions = copied(pull);
  EXPECT_THAT(events(actions), Contains("image-acknowledged"));
  EXPECT_EQ(only_call<BuildCall>(actions).what.base, first.what.image);
}

TEST_F(ControlChainTest, WhenItCannotBeCopiedTheNextIsFull) {
  const auto first = only_call<BuildCall>(up(split()));
  const auto pull = only_call<PullCall>(saved(first));
  checkpoint(ControlCore::Extent::changes);
  auto actions = failed(pull.id, Errc::unavailable);
  std::ranges::move(pass(2000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_FALSE(only_call<BuildCall>(actions).what.base);
}

TEST_F(ControlChainTest, AShareThatIsNowhereAnyMoreMakesANewFullImage) {
  acknowledged();
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  const auto pull = only_call<PullCall>(saved(build));
  auto actions = failed(pull.id, Errc::not_found);
  std::ranges::move(pass(2000ms, {h1, h2, h3}), std::back_inserter(actions));
  EXPECT_FALSE(only_call<BuildCall>(actions).what.base);
}

TEST_F(ControlChainTest, AChainHasItsLength) {
  acknowledged();
  const std::size_t most = core().settings().chain_images;
  for (std::size_t i = 1; i < most; ++i) delta();
  EXPECT_EQ(disk[site].image->bases.size() + 1, most);
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  EXPECT_FALSE(build.what.base);
  EXPECT_THAT(detail(saved(build)), HasSubstr("chain"));
}

TEST_F(ControlChainTest, WhatTheOwnerSavedWholeHasNoBases) {
  acknowledged();
  const auto build = only_call<BuildCall>(checkpoint(ControlCore::Extent::changes));
  ASSERT_TRUE(build.what.base);
  saved(build, std::nullopt);  // its pager counts from another cut
  EXPECT_THAT(disk[site].image->bases, IsEmpty());
}

TEST_F(ControlChainTest, AContainerHasNone) {
  up(spec(Consistency::shared, StandbyLevel::image));
  const Status asked = core().renew_image(site, ControlCore::Extent::changes, now);
  ASSERT_FALSE(asked);
  EXPECT_EQ(asked.error().code, Errc::conflict);
}

}  // namespace
}  // namespace yado::control
