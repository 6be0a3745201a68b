#include "gate/core/scheduler.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace yado::gate {
namespace {

constexpr std::uint8_t granter = 3;

/// A Scheduler with one workload "site", up on h1 under epoch 1, and two more hosts; time is a variable.
class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() { table_.hosts = {host("h1", 1), host("h2", 2), host("h3", 3)}; }

  static HostAddress host(const std::string& name, std::uint16_t port) {
    return {HostId(name), Endpoint{"10.0.0." + std::to_string(port), 7000}};
  }
  static Route route(RouteState state, const std::string& on, std::uint64_t counter) {
    Route made;
    made.workload = WorkloadId("site");
    made.service.hosts = {"site.example"};
    made.service.idempotency_header = "idempotency-key";
    made.state = state;
    made.epoch = Epoch::make(counter, 0);
    made.host = HostId(on);
    made.endpoint = Endpoint{"10.0.0." + on.substr(1), 8000};
    made.fallback = {HostId("h2"), HostId("h3")};
    return made;
  }
  void start(Route made) {
    table_.routes = {std::move(made)};
    scheduler_.routes(table_, now_);
    scheduler_.take();
  }
  void start() { start(route(RouteState::up, "h1", 1)); }

  void ask(RequestId id, Method method = Method::safe, bool key = false, bool replayable = true) {
    scheduler_.request(id, "site.example", method, key, replayable, now_);
  }
  /// Asks, connects and sends: what happens to a request on a living host.
  void send(RequestId id, Method method = Method::safe, bool key = false, bool replayable = true) {
    ask(id, method, key, replayable);
    const auto forwards = taken<Forward>();
    ASSERT_EQ(forwards.size(), 1u);
    scheduler_.connected(id, forwards[0].attempt, 1ms, now_);
    scheduler_.sent(id, forwards[0].attempt);
  }
  /// The actions of one kind since the last time; the others are dropped.
  template <class T>
  std::vector<T> taken() {
    std::vector<T> found;
    for (Action& action : scheduler_.take())
      if (auto* wanted = std::get_if<T>(&action)) found.push_back(std::move(*wanted));
    return found;
  }
  /// Lets time pass to the next deadline, at most `limit` of it.
  bool step(nanoseconds limit) {
    const Instant next = scheduler_.next_deadline();
    if (next > now_ + limit) return false;
    EXPECT_GE(next, now_) << "a deadline in the past: the shell would spin";
    now_ = std::max(now_, next);
    scheduler_.tick(now_);
    EXPECT_GT(scheduler_.next_deadline(), now_) << "a tick without progress: the shell would spin";
    return true;
  }
  /// h1 does not answer any probe until the Scheduler suspects it; the other hosts answer at once.
  std::vector<Action> fall_silent(const std::string& silent = "h1") {
    std::vector<Action> seen;
    for (int i = 0; i < 50; ++i) {
      bool suspected = false;
      // What an answer brings about happens in the same moment.
      for (auto actions = scheduler_.take(); !actions.empty(); actions = scheduler_.take())
        for (Action& action : actions) {
          if (auto* probe = std::get_if<Probe>(&action); probe && probe->host != HostId(silent))
            scheduler_.probe_answered(probe->host, probe->token, now_);
          suspected =
              suspected || std::holds_alternative<Ask>(action) || std::holds_alternative<RaiseWithoutControl>(action);
          seen.push_back(std::move(action));
        }
      if (suspected || !step(10s)) break;
    }
    return seen;
  }
  template <class T>
  static std::vector<T> among(const std::vector<Action>& actions) {
    std::vector<T> found;
    for (const Action& action : actions)
      if (auto* wanted = std::get_if<T>(&action)) found.push_back(*wanted);
    return found;
  }

  RouteTable table_;
  Scheduler scheduler_{granter};
  Instant now_ = Instant(1h);
};

// ---- where a request goes ------------------------------------------------------------------------------------------

TEST_F(SchedulerTest, AnUnknownHostNameIsNotFound) {
  start();
  scheduler_.request(1, "nobody.example", Method::safe, false, true, now_);
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].status, 404);
  EXPECT_EQ(scheduler_.requests_in_hand(), 0u);
}

TEST_F(SchedulerTest, AStoppedWorkloadIsRefusedAndSoIsWhoWasHeldForIt) {
  start(route(RouteState::asleep, "h1", 1));
  ask(1);
  EXPECT_EQ(taken<Ask>().size(), 1u);
  table_.routes = {route(RouteState::stopped, "h1", 2)};
  scheduler_.routes(table_, now_);
  ask(2);
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 2u);
  EXPECT_EQ(refused[0].status, 503);
  EXPECT_EQ(refused[1].status, 503);
}

TEST_F(SchedulerTest, OnlyRepeatableRequestsUseAKeptConnection) {
  start();
  ask(1, Method::safe);
  EXPECT_FALSE(taken<Forward>()[0].fresh_connection);
  ask(2, Method::other);
  EXPECT_TRUE(taken<Forward>()[0].fresh_connection);
  ask(3, Method::idempotent);
  EXPECT_TRUE(taken<Forward>()[0].fresh_connection);
  ask(4, Method::other, true);
  EXPECT_FALSE(taken<Forward>()[0].fresh_connection);
  ask(5, Method::safe, false, false);
  EXPECT_TRUE(taken<Forward>()[0].fresh_connection);
}

TEST_F(SchedulerTest, AForwardNamesTheOwnerItGoesTo) {
  start();
  ask(1);
  const auto forwards = taken<Forward>();
  ASSERT_EQ(forwards.size(), 1u);
  EXPECT_EQ(forwards[0].workload, WorkloadId("site"));
  EXPECT_EQ(forwards[0].epoch, Epoch::make(1, 0));
  EXPECT_EQ(forwards[0].host, HostId("h1"));
}

TEST_F(SchedulerTest, ManyRequestsForASleepingWorkloadShareOneQuestion) {
  start(route(RouteState::asleep, "h1", 1));
  for (RequestId id = 1; id <= 5; ++id) ask(id, Method::other);
  EXPECT_EQ(taken<Ask>().size(), 1u);
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), true, now_);
  EXPECT_EQ(taken<Forward>().size(), 5u);
}

// ---- attempts that end -------------------------------------------------------------------------------------------

TEST_F(SchedulerTest, ARefusalIsProofAndAsksForANewOwner) {
  start();
  ask(1, Method::other);
  scheduler_.failed(1, taken<Forward>()[0].attempt, Failure::refused, now_);
  const auto asks = taken<Ask>();
  ASSERT_EQ(asks.size(), 1u);
  EXPECT_EQ(asks[0].evidence, Evidence::refused);
  EXPECT_EQ(asks[0].suspect, HostId("h1"));
  EXPECT_EQ(asks[0].observed, Epoch::make(1, 0));
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), true, now_);
  const auto again = taken<Forward>();
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].host, HostId("h2"));
}

TEST_F(SchedulerTest, WhatWasSentIsRepeatedOnlyIfThatIsHarmless) {
  struct Case {
    Method method;
    bool key, replayable, repeated;
  };
  RequestId id = 0;
  start();
  for (const Case& c : {Case{Method::safe, false, true, true}, Case{Method::safe, false, false, false},
                        Case{Method::idempotent, false, true, false}, Case{Method::other, false, true, false},
                        Case{Method::other, true, true, true}, Case{Method::other, true, false, false}}) {
    send(++id, c.method, c.key, c.replayable);
    scheduler_.failed(id, 1, Failure::closed, now_);
    const auto actions = scheduler_.take();
    if (c.repeated) {
      ASSERT_EQ(among<Forward>(actions).size(), 1u) << id;
      EXPECT_TRUE(among<Forward>(actions)[0].fresh_connection) << id;
    } else {
      ASSERT_EQ(among<Refuse>(actions).size(), 1u) << id;
      EXPECT_EQ(among<Refuse>(actions)[0].status, 502) << id;
      EXPECT_EQ(among<Refuse>(actions)[0].outcome, Outcome::unknown) << id;
    }
  }
}

TEST_F(SchedulerTest, AnOutcomeStaysUnknownWhenARepetitionIsRefusedLater) {
  start();
  send(1, Method::other, true);
  scheduler_.failed(1, 1, Failure::closed, now_);
  const auto again = taken<Forward>();
  ASSERT_EQ(again.size(), 1u);
  scheduler_.failed(1, again[0].attempt, Failure::refused, now_);
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::no_space, "nowhere"}, now_);
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].outcome, Outcome::unknown);
  EXPECT_EQ(refused[0].status, 502);
}

TEST_F(SchedulerTest, AnAnswerThatBreaksOffIsNotRepeated) {
  start();
  send(1);
  scheduler_.answering(1, 1, now_);
  scheduler_.failed(1, 1, Failure::closed, now_);
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].outcome, Outcome::unknown);
}

TEST_F(SchedulerTest, AServerThatKeepsClosingIsGivenUp) {
  start();
  ask(1);
  for (int attempt = 1; attempt < 20; ++attempt) {
    const auto actions = scheduler_.take();
    if (!among<Refuse>(actions).empty()) {
      EXPECT_EQ(among<Refuse>(actions)[0].status, 502);
      EXPECT_GT(attempt, 2);
      return;
    }
    scheduler_.sent(1, attempt);
    scheduler_.failed(1, attempt, Failure::closed, now_);
  }
  FAIL() << "repeated for ever";
}

TEST_F(SchedulerTest, EventsOfAnAttemptThatWasGivenUpAreIgnored) {
  start();
  send(1);
  scheduler_.failed(1, 1, Failure::closed, now_);
  ASSERT_EQ(taken<Forward>().size(), 1u);
  scheduler_.failed(1, 1, Failure::closed, now_);
  scheduler_.answering(1, 1, now_);
  EXPECT_TRUE(scheduler_.take().empty());
  EXPECT_EQ(scheduler_.requests_in_hand(), 1u);
}

// ---- silence -----------------------------------------------------------------------------------------------------

TEST_F(SchedulerTest, ThreeUnansweredProbesMakeASuspectAndOnlyGetsAreRepeated) {
  start();
  send(1);
  send(2, Method::other);
  const auto actions = fall_silent();
  int probes = 0;
  for (const Action& action : actions) {
    if (std::holds_alternative<Ask>(action)) break;
    if (auto* probe = std::get_if<Probe>(&action)) probes += probe->host == HostId("h1");
  }
  EXPECT_EQ(probes, 3);
  ASSERT_EQ(among<Ask>(actions).size(), 1u);
  EXPECT_EQ(among<Ask>(actions)[0].evidence, Evidence::silent);
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), false, now_);
  const auto after = scheduler_.take();
  EXPECT_EQ(among<Abandon>(after).size(), 2u);
  ASSERT_EQ(among<Forward>(after).size(), 1u);
  EXPECT_EQ(among<Forward>(after)[0].request, 1u);
  ASSERT_EQ(among<Refuse>(after).size(), 1u);
  EXPECT_EQ(among<Refuse>(after)[0].outcome, Outcome::unknown);
}

TEST_F(SchedulerTest, AFencedOwnerLetsIdempotentRequestsBeRepeated) {
  for (const bool fenced : {false, true}) {
    Scheduler fresh(granter);
    std::swap(scheduler_, fresh);
    start();
    send(1, Method::idempotent);
    fall_silent();
    scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), fenced, now_);
    EXPECT_EQ(taken<Forward>().size(), fenced ? 1u : 0u);
  }
}

TEST_F(SchedulerTest, AProbeThatIsAnsweredKeepsTheHostTrusted) {
  start();
  send(1);
  for (int i = 0; i < 20 && step(2s); ++i)
    for (const Probe& probe : taken<Probe>()) scheduler_.probe_answered(probe.host, probe.token, now_ += 1ms);
  const auto actions = scheduler_.take();
  for (const Ask& asked : among<Ask>(actions)) EXPECT_NE(asked.evidence, Evidence::silent);
}

TEST_F(SchedulerTest, WhenMostHostsAreSilentNothingMovesAndNothingSpins) {
  start();
  send(1);
  auto nobody_answers = [&](int steps) {
    for (int i = 0; i < steps && step(2s); ++i) {
    }
    return scheduler_.take();
  };
  EXPECT_EQ(among<Ask>(nobody_answers(30)).size(), 1u) << "the first host to fall silent may have died";
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::no_space, "nowhere"}, now_);
  scheduler_.probe_answered(HostId("h1"), 0, now_);
  scheduler_.take();
  send(2);  // to h1, which answers again, while h2 and h3 do not
  const auto braked = nobody_answers(40);
  EXPECT_TRUE(among<Ask>(braked).empty());
  EXPECT_TRUE(among<Refuse>(braked).empty());
  EXPECT_EQ(scheduler_.requests_in_hand(), 1u);
  scheduler_.probe_answered(HostId("h2"), 0, now_);
  scheduler_.probe_answered(HostId("h3"), 0, now_);
  ASSERT_TRUE(step(2s));
  EXPECT_EQ(taken<Ask>().size(), 1u) << "with the others alive, h1 is dead";
}

TEST_F(SchedulerTest, AWrongSuspicionLetsRepeatableRequestsGoOn) {
  start();
  send(1);
  fall_silent();
  ask(2, Method::safe);
  ask(3, Method::other);
  EXPECT_TRUE(taken<Forward>().empty());
  scheduler_.probe_answered(HostId("h1"), 999, now_);
  const auto forwards = taken<Forward>();
  ASSERT_EQ(forwards.size(), 1u);
  EXPECT_EQ(forwards[0].request, 2u) << "a POST could meet the move that control may still make";
}

TEST_F(SchedulerTest, AHostThatCameBackDoesNotHoldTheBrake) {
  start();
  send(1);
  fall_silent("h1");
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), true, now_);
  scheduler_.take();
  send(2);
  // h1 would answer, and is asked once per second only; now h2 falls silent: two of three.
  const Instant begun = now_;
  const auto asks = among<Ask>(fall_silent("h2"));
  ASSERT_EQ(asks.size(), 1u);
  EXPECT_EQ(asks[0].suspect, HostId("h2"));
  EXPECT_LT(now_ - begun, 500ms);
}

TEST_F(SchedulerTest, ANewOwnerIsNotLeftForAnOlderSuspicionOfItsHost) {
  start();
  send(1);
  fall_silent();
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), true, now_);
  scheduler_.take();
  // h1 came back, was not asked for anything since, and is the owner's host again.
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h1", 3), true, now_);
  scheduler_.take();
  ask(2);
  const auto actions = scheduler_.take();
  EXPECT_TRUE(among<Ask>(actions).empty());
  ASSERT_EQ(among<Forward>(actions).size(), 1u);
  EXPECT_EQ(among<Forward>(actions)[0].host, HostId("h1"));
}

TEST_F(SchedulerTest, AnOwnerOnAHostThatTheTableDoesNotListIsProbedAtItsOwnPort) {
  table_.hosts.clear();
  start();
  send(1);
  ASSERT_TRUE(step(10s));
  const auto probes = taken<Probe>();
  ASSERT_EQ(probes.size(), 1u);
  EXPECT_EQ(probes[0].endpoint, (Endpoint{"10.0.0.1", 8000}));
}

TEST_F(SchedulerTest, ALostConnectionIsNoSignOfLife) {
  start();
  send(1);
  fall_silent();
  scheduler_.failed(1, 1, Failure::lost, now_);
  ask(2);
  EXPECT_TRUE(taken<Forward>().empty()) << "the host is still suspected";
}

TEST_F(SchedulerTest, AnApplicationThatDoesNotAnswerOnALivingHostIsUnresponsive) {
  start();
  send(1);
  std::vector<Ask> asks;
  for (int i = 0; i < 100 && asks.empty() && step(5s); ++i) {
    const auto actions = scheduler_.take();
    for (const Probe& probe : among<Probe>(actions)) scheduler_.probe_answered(probe.host, probe.token, now_);
    asks = among<Ask>(actions);
  }
  ASSERT_EQ(asks.size(), 1u);
  EXPECT_EQ(asks[0].evidence, Evidence::unresponsive);
  // Control looked and found it well: the request goes on where it is, and the next question comes later.
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::conflict, "it runs"}, now_);
  EXPECT_TRUE(taken<Abandon>().empty());
  EXPECT_EQ(scheduler_.requests_in_hand(), 1u);
}

/// It answered quickly, over a slow line: its patience ends before its dead host's probes do. Two questions to control come of it.
struct SchedulerTwoQuestionsTest : SchedulerTest {
  SchedulerTwoQuestionsTest() {
    start();
    for (RequestId id = 1; id <= 20; ++id) {
      ask(id);
      const int attempt = taken<Forward>().at(0).attempt;
      scheduler_.connected(id, attempt, 200ms, now_);
      scheduler_.sent(id, attempt);
      if (id == 20) break;
      scheduler_.answering(id, attempt, now_ += 5ms);
      scheduler_.finished(id, now_);
    }
    for (int i = 0; i < 50 && asks.size() < 2 && step(5s); ++i) {
      const auto actions = scheduler_.take();
      for (const Probe& probe : among<Probe>(actions))
        if (probe.host != HostId("h1")) scheduler_.probe_answered(probe.host, probe.token, now_);
      for (const Ask& each : among<Ask>(actions)) asks.push_back(each);
    }
  }
  std::vector<Ask> asks;
};

TEST_F(SchedulerTwoQuestionsTest, AnApplicationThatDoesNotAnswerMayHaveLostItsHostAndThatIsSaidToo) {
  ASSERT_EQ(asks.size(), 2u);
  EXPECT_EQ(asks[0].evidence, Evidence::unresponsive);
  EXPECT_EQ(asks[1].evidence, Evidence::silent);
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), false, now_);
  EXPECT_FALSE(taken<Forward>().empty());
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), false, now_);
  EXPECT_TRUE(scheduler_.take().empty()) << "the answer to the first question comes, too";
}

TEST_F(SchedulerTwoQuestionsTest, WhenControlDiesBothAreLost) {
  ASSERT_EQ(asks.size(), 2u);
  scheduler_.control_reachable(false, now_);
  ASSERT_EQ(taken<RaiseWithoutControl>().size(), 1u) << "nobody's answer is waited for";
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h2", 2), false, now_);
  EXPECT_FALSE(taken<Forward>().empty());
}

// ---- relocations -------------------------------------------------------------------------------------------------

TEST_F(SchedulerTest, AConflictAboutASleepingWorkloadIsAFailureLikeOthers) {
  start(route(RouteState::asleep, "h1", 1));
  ask(1);
  scheduler_.take();
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::conflict, "being removed"}, now_);
  const auto actions = scheduler_.take();
  EXPECT_TRUE(among<Forward>(actions).empty()) << "there is nobody to forward to";
  ASSERT_EQ(among<Refuse>(actions).size(), 1u);
  EXPECT_EQ(among<Refuse>(actions)[0].status, 503);
}

TEST_F(SchedulerTest, TooManyRelocationsAreRefused) {
  Route limited = route(RouteState::up, "h1", 1);
  limited.relocations = 1;
  start(limited);
  for (RequestId id = 1; id <= 2; ++id) {
    ask(id);
    const auto forwards = taken<Forward>();
    ASSERT_EQ(forwards.size(), 1u);
    scheduler_.failed(id, forwards[0].attempt, Failure::refused, now_);
    if (id == 2) break;
    EXPECT_EQ(taken<Ask>().size(), 1u);
    Route moved = limited;
    moved.epoch = moved.epoch.next();
    scheduler_.relocated(WorkloadId("site"), moved, true, now_);
    const auto again = taken<Forward>();
    ASSERT_EQ(again.size(), 1u);
    scheduler_.answering(id, again[0].attempt, now_);
    scheduler_.finished(id, now_);
    scheduler_.take();
  }
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].status, 503);
  EXPECT_NE(refused[0].why.find("rate limit"), std::string::npos);
}

TEST_F(SchedulerTest, HeldRequestsAreRefusedWhenNobodyAnswersInTime) {
  start(route(RouteState::asleep, "h1", 1));
  ask(1);
  scheduler_.take();
  ASSERT_TRUE(step(10min));
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].status, 503);
  EXPECT_EQ(refused[0].outcome, Outcome::none);
}

TEST_F(SchedulerTest, AnOlderEpochIsNeverAdopted) {
  start(route(RouteState::up, "h2", 5));
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h1", 4), true, now_);
  ask(1);
  EXPECT_EQ(taken<Forward>()[0].host, HostId("h2"));
}

TEST_F(SchedulerTest, AWorkloadThatIsRemovedTakesItsRequestsAlong) {
  start();
  send(1);
  start(route(RouteState::up, "h1", 1));
  ask(2);
  scheduler_.take();
  table_.routes.clear();
  scheduler_.routes(table_, now_);
  const auto refused = taken<Refuse>();
  ASSERT_EQ(refused.size(), 2u);
  EXPECT_EQ(refused[0].outcome, Outcome::unknown);
  EXPECT_EQ(refused[1].outcome, Outcome::none);
  EXPECT_EQ(scheduler_.requests_in_hand(), 0u);
}

// ---- without control ---------------------------------------------------------------------------------------------

TEST_F(SchedulerTest, WithoutControlFallbackHostsAreTriedInTurnAndEachUnderAnEpochOfItsOwn) {
  start();
  scheduler_.control_reachable(false, now_);
  ask(1);
  scheduler_.failed(1, taken<Forward>()[0].attempt, Failure::refused, now_);
  const auto first = taken<RaiseWithoutControl>();
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].host, HostId("h2"));
  EXPECT_EQ(first[0].epoch, Epoch::make(2, granter));
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::unavailable, "no answer"}, now_);
  const auto second = taken<RaiseWithoutControl>();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].host, HostId("h3"));
  EXPECT_GT(second[0].epoch, first[0].epoch) << "the first may have raised it after all";
  EXPECT_NE(second[0].instance, first[0].instance);
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::unavailable, "no answer"}, now_);
  EXPECT_EQ(taken<Refuse>().size(), 1u);
}

TEST_F(SchedulerTest, WithoutControlWhatFailedOnAllHostsIsNotTriedAgainWithEveryRequest) {
  start(route(RouteState::asleep, "h1", 1));
  scheduler_.control_reachable(false, now_);
  RequestId id = 0;
  // Whether the next request makes it try again; each try of a host takes 100 ms.
  const auto tried = [&] {
    ask(++id);
    bool any = false;
    for (auto raises = taken<RaiseWithoutControl>(); !raises.empty(); raises = taken<RaiseWithoutControl>()) {
      any = true;
      scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::unavailable, "it has no image"}, now_ += 100ms);
    }
    EXPECT_EQ(scheduler_.requests_in_hand(), 0u) << "refused";
    return any;
  };
  EXPECT_TRUE(tried());
  EXPECT_FALSE(tried());
  now_ += 199ms;
  EXPECT_FALSE(tried());
  now_ += 1ms;
  EXPECT_TRUE(tried()) << "two hosts took 200 ms";
  now_ += 399ms;
  EXPECT_FALSE(tried());
  now_ += 1ms;
  EXPECT_TRUE(tried());
  EXPECT_FALSE(tried());
  scheduler_.control_reachable(true, now_);
  ask(++id);
  EXPECT_EQ(taken<Ask>().size(), 1u) << "control is asked at once";
}

TEST_F(SchedulerTest, AnExclusiveWorkloadWaitsForControl) {
  Route exclusive = route(RouteState::up, "h1", 1);
  exclusive.consistency = Consistency::exclusive;
  start(exclusive);
  scheduler_.control_reachable(false, now_);
  ask(1);
  scheduler_.failed(1, taken<Forward>()[0].attempt, Failure::refused, now_);
  EXPECT_TRUE(taken<RaiseWithoutControl>().empty());
  scheduler_.control_reachable(true, now_);
  EXPECT_EQ(taken<Ask>().size(), 1u);
}

TEST_F(SchedulerTest, AFallbackThatFailsAfterControlCameBackLeavesItToControl) {
  start();
  scheduler_.control_reachable(false, now_);
  ask(1);
  scheduler_.failed(1, taken<Forward>()[0].attempt, Failure::refused, now_);
  EXPECT_EQ(taken<RaiseWithoutControl>().size(), 1u);
  scheduler_.control_reachable(true, now_);
  EXPECT_EQ(taken<Ask>().size(), 1u);
  scheduler_.relocation_failed(WorkloadId("site"), Error{Errc::unavailable, "h2 does not answer"}, now_);
  EXPECT_TRUE(taken<Refuse>().empty()) << "control's answer is still to come";
  scheduler_.relocated(WorkloadId("site"), route(RouteState::up, "h3", 3), true, now_);
  EXPECT_EQ(taken<Forward>().size(), 1u);
}

TEST_F(SchedulerTest, ControlThatComesAndGoesDoesNotRaiseTwice) {
  start();
  scheduler_.control_reachable(false, now_);
  ask(1);
  scheduler_.failed(1, taken<Forward>()[0].attempt, Failure::refused, now_);
  EXPECT_EQ(taken<RaiseWithoutControl>().size(), 1u);
  scheduler_.control_reachable(true, now_);
  scheduler_.control_reachable(false, now_);
  EXPECT_TRUE(taken<RaiseWithoutControl>().empty()) << "the first fallback host has not answered yet";
}

// ---- idle --------------------------------------------------------------------------------------------------------

TEST_F(SchedulerTest, AnIdleWorkloadIsReportedOnceAndAgainWhenItIsAskedFor) {
  Route mortal = route(RouteState::up, "h1", 1);
  mortal.lifetime = 10s;
  start(mortal);
  ASSERT_TRUE(step(10s));
  auto idle = taken<ReportIdle>();
  ASSERT_EQ(idle.size(), 1u);
  EXPECT_TRUE(idle[0].idle);
  EXPECT_FALSE(step(1h));
  ask(1);
  idle = taken<ReportIdle>();
  ASSERT_EQ(idle.size(), 1u);
  EXPECT_FALSE(idle[0].idle);
}

TEST_F(SchedulerTest, AWorkloadWithARequestInHandIsNotIdle) {
  Route mortal = route(RouteState::up, "h1", 1);
  mortal.lifetime = 1s;
  start(mortal);
  send(1);
  scheduler_.answering(1, 1, now_);
  for (int i = 0; i < 20 && step(2s); ++i) {
    const auto actions = scheduler_.take();
    for (const Probe& probe : among<Probe>(actions)) scheduler_.probe_answered(probe.host, probe.token, now_);
    EXPECT_TRUE(among<ReportIdle>(actions).empty());
  }
}

}  // namespace
}  // namespace yado::gate
