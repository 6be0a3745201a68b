// Who keeps the memory of a VM while it runs.
#include "control/core/core_testing.hpp"

namespace yado::control {
namespace {

using namespace testing_core;

struct MemoryHostsTest : ControlCoreTest {
  const HostId h4{"h4"};
  const std::vector<HostId> everybody{h1, h2, h3, h4};

  static WorkloadSpec vm(std::vector<HostId> over, Redundancy redundancy = Redundancy::none) {
    WorkloadSpec made = spec(Consistency::shared, StandbyLevel::cold);
    made.kind = Kind::vm;
    made.vm.memory_bytes = 256 << 20;
    made.vm.split = split(64 << 20, std::move(over), redundancy);
    return made;
  }
  static Split split(std::uint64_t local, std::vector<HostId> over, Redundancy redundancy = Redundancy::none) {
    Split made{.local_bytes = local, .over = {}, .redundancy = redundancy};
    for (const HostId& host : over) made.over.push_back({.host = host, .address = {}});
    return made;
  }
  void offer_memory() {
    for (const HostId& host : everybody) agent(host).memory = {agent(host).agent.address, 7100};
  }
  std::vector<Action> resplit(const Split& wanted) {
    core().resplit(++last_ask, site, wanted, now);
    return take();
  }
  Errc refusal(const Split& wanted) {
    const auto actions = resplit(wanted);
    const auto route = answer_to(last_ask, actions).route;
    return route ? Errc::internal : route.error().code;
  }
  static std::vector<HostId> hosts_of(const Split& split) {
    std::vector<HostId> hosts;
    for (const MemoryHost& one : split.over) hosts.push_back(one.host);
    return hosts;
  }
  using Hosts = std::vector<HostId>;
};

TEST_F(MemoryHostsTest, ItsOwnerIsToldAndThePersonIsAnsweredWhenItLiesSo) {
  offer_memory();
  up(vm({h2}), everybody);
  const auto actions = resplit(split(128 << 20, {h3, h4}));
  const auto call = only_call<ResplitCall>(actions);
  EXPECT_EQ(call.host, h1);
  EXPECT_EQ(call.what.instance, record().instance);
  EXPECT_EQ(hosts_of(*call.what.spec.vm.split), (Hosts{h3, h4}));
  EXPECT_EQ(call.what.spec.vm.split->over[0].port, 7100);
  EXPECT_FALSE(answered(last_ask, actions));
  EXPECT_EQ(disk[site].spec.vm.split->local_bytes, 128u << 20) << "not durable before it is asked for";
  const auto after = done(call.id, CallReply{});
  EXPECT_TRUE(answer_to(last_ask, after).route);
  EXPECT_THAT(events(after), Contains("memory-hosts"));
  EXPECT_THAT(calls<ResplitCall>(pass(5000ms, everybody)), IsEmpty());
  EXPECT_EQ(record().epoch.counter(), 1u) << "it was not raised anew";
}

TEST_F(MemoryHostsTest, AfterAnErrorItIsToBeAsBefore) {
  offer_memory();
  up(vm({h2}), everybody);
  const auto call = only_call<ResplitCall>(resplit(split(64 << 20, {h3})));
  const auto after = failed(call.id, Errc::no_space);
  EXPECT_EQ(answer_to(last_ask, after).route.error().code, Errc::no_space);
  EXPECT_EQ(hosts_of(*disk[site].spec.vm.split), (Hosts{h2}));
  EXPECT_THAT(events(after), Contains("memory-hosts-failed"));
  // What the pager made of it is not known: it is told again, after a pause.
  const auto back = only_call<ResplitCall>(pass(1500ms, everybody));
  EXPECT_EQ(hosts_of(*back.what.spec.vm.split), (Hosts{h2}));
  done(back.id, CallReply{});
  EXPECT_THAT(calls<ResplitCall>(pass(5000ms, everybody)), IsEmpty());
}

TEST_F(MemoryHostsTest, WhatCannotBeIsRefusedAtOnce) {
  offer_memory();
  agent(h4).memory = {};
  up(vm({h2}), everybody);
  EXPECT_EQ(refusal(split(64 << 20, {h1})), Errc::invalid_argument) << "its own host";
  EXPECT_EQ(refusal(split(64 << 20, {HostId("h9")})), Errc::unavailable);
  EXPECT_EQ(refusal(split(64 << 20, {h4})), Errc::unavailable) << "offers no memory";
  EXPECT_EQ(refusal(split(64 << 20, {h2, h3}, Redundancy::replica)), Errc::unsupported);
  EXPECT_THAT(calls<ResplitCall>(resplit(split(64 << 20, {h3}))), SizeIs(1));
  EXPECT_EQ(refusal(split(64 << 20, {h2})), Errc::conflict) << "one at a time";
}

TEST_F(MemoryHostsTest, AnOwnerThatIsLostMeanwhileIsRaisedAsBefore) {
  offer_memory();
  up(vm({h2}), everybody);
  const auto call = only_call<ResplitCall>(resplit(split(64 << 20, {h3})));
  const AskId asked = last_ask;
  auto actions = silence({h2, h3, h4});
  EXPECT_FALSE(answer_to(asked, actions).route);
  const auto raise = only_call<RaiseCall>(actions);
  EXPECT_EQ(raise.host, h2) << "the first that is left";
  EXPECT_EQ(hosts_of(*raise.what.spec->vm.split), (Hosts{h3})) << "h2 is its main host now: another keeps its memory";
  raised(raise);
  EXPECT_THAT(all<Answer>(done(call.id, CallReply{})), IsEmpty()) << "answered late";
}

TEST_F(MemoryHostsTest, AnotherTakesThePlaceOfALostOneWithRedundancy) {
  offer_memory();
  up(vm({h2, h3}, Redundancy::replica), everybody);
  const auto call = only_call<ResplitCall>(silence({h1, h2, h4}));
  EXPECT_EQ(call.host, h1);
  EXPECT_EQ(hosts_of(*call.what.spec.vm.split), (Hosts{h2, h4}));
  // The first time it fails.
  EXPECT_THAT(events(failed(call.id)), Contains("memory-hosts-failed"));
  const auto again = only_call<ResplitCall>(pass(1500ms, {h1, h2, h4}));
  const auto after = done(again.id, CallReply{});
  const auto emitted = all<Emit>(after);
  const auto replaced = std::ranges::find(emitted, "memory-host-replaced", [](const Emit& one) { return one.event.kind; });
  ASSERT_NE(replaced, emitted.end());
  EXPECT_EQ(replaced->event.fields.at("lost"), "h3");
  EXPECT_EQ(replaced->event.fields.at("over"), "h2, h4");
  EXPECT_EQ(hosts_of(*record().spec.vm.split), (Hosts{h2, h3})) << "what is wanted stays what a person said";
  EXPECT_THAT(calls<ResplitCall>(pass(5000ms, everybody)), IsEmpty()) << "nor does it go back when h3 does";
}

TEST_F(MemoryHostsTest, TheSpareWithTheMostFreeMemoryTakesThePlace) {
  offer_memory();
  const HostId h5{"h5"};
  agent(h5).memory = {agent(h5).agent.address, 7100};
  agent(h5).memory_free_bytes = agent(h4).memory_free_bytes + 1;
  up(vm({h2, h3}, Redundancy::replica), {h1, h2, h3, h4, h5});
  EXPECT_EQ(hosts_of(*only_call<ResplitCall>(silence({h1, h2, h4, h5})).what.spec.vm.split), (Hosts{h2, h5}));
}

TEST_F(MemoryHostsTest, TheSecondThatIsLostIsReplacedAndTheFirstSpareStays) {
  offer_memory();
  const HostId h5{"h5"};
  agent(h5).memory = {agent(h5).agent.address, 7100};
  agent(h4).memory_free_bytes = agent(h5).memory_free_bytes + 1;
  up(vm({h2, h3}, Redundancy::parity), {h1, h2, h3, h4, h5});
  const auto first = only_call<ResplitCall>(silence({h1, h2, h4, h5}));
  EXPECT_EQ(hosts_of(*first.what.spec.vm.split), (Hosts{h2, h4}));
  done(first.id, CallReply{});
  pass(3000ms, {h1, h2, h3, h4, h5});
  // Its spec names h3, which is back: but h4 has pages of it, and h3 has none.
  EXPECT_EQ(hosts_of(*only_call<ResplitCall>(silence({h1, h3, h4, h5})).what.spec.vm.split), (Hosts{h3, h4}));
}

TEST_F(MemoryHostsTest, WhoTakesAPlaceKeepsAsMuchAsTheOneBefore) {
  offer_memory();
  WorkloadSpec sized = vm({h2, h3}, Redundancy::replica);
  sized.vm.split->over[0].bytes = 192 << 20;
  sized.vm.split->over[1].bytes = 224 << 20;
  up(sized, everybody);
  const auto call = only_call<ResplitCall>(silence({h1, h3, h4}));
  EXPECT_EQ(hosts_of(*call.what.spec.vm.split), (Hosts{h4, h3}));
  EXPECT_EQ(call.what.spec.vm.split->over[0].bytes, 192u << 20);
  EXPECT_EQ(call.what.spec.vm.split->over[1].bytes, 224u << 20);
}

TEST_F(MemoryHostsTest, AServerThatWasStartedAnewHasNothing) {
  offer_memory();
  up(vm({h2, h3}, Redundancy::replica), {h1, h2, h3});
  agent(h3).memory.port = 7200;
  const auto call = only_call<ResplitCall>(beats({h3}));
  EXPECT_EQ(hosts_of(*call.what.spec.vm.split), (Hosts{h2, h3}));
  EXPECT_EQ(call.what.spec.vm.split->over[1].port, 7200);
}

TEST_F(MemoryHostsTest, WithoutASpareItWaitsForOne) {
  offer_memory();
  up(vm({h2, h3}, Redundancy::replica), {h1, h2, h3});
  EXPECT_THAT(calls<ResplitCall>(silence({h1, h2})), IsEmpty());
  EXPECT_THAT(calls<ResplitCall>(pass(3000ms, {h1, h2})), IsEmpty());
  EXPECT_EQ(hosts_of(*only_call<ResplitCall>(beats({h4})).what.spec.vm.split), (Hosts{h2, h4}));
}

TEST_F(MemoryHostsTest, WithoutRedundancyNothingCanBeReplaced) {
  offer_memory();
  up(vm({h2, h3}), everybody);
  EXPECT_THAT(calls<ResplitCall>(silence({h1, h2, h4})), IsEmpty());
}

TEST_F(MemoryHostsTest, ControlStartedAnewKnowsWhoKeepsIt) {
  offer_memory();
  up(vm({h2, h3}, Redundancy::replica), everybody);
  restart();
  EXPECT_THAT(calls<ResplitCall>(pass(5000ms, everybody)), IsEmpty());
  EXPECT_EQ(hosts_of(*only_call<ResplitCall>(silence({h1, h2, h4})).what.spec.vm.split), (Hosts{h2, h4}));
}

}  // namespace
}  // namespace yado::control
