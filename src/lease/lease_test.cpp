#include <gtest/gtest.h>

#include "lease/holder.hpp"
#include "lease/table.hpp"

namespace yado::lease {
namespace {

Instant at(int ms) { return Instant(milliseconds(ms)); }
const WorkloadId site{"site"};

TEST(HolderTest, NothingRunsBeforeARoundTrip) {
  Holder holder(3000ms);
  auto decision = holder.begin(at(0));
  ASSERT_TRUE(decision.send_renewal);
  EXPECT_FALSE(decision.run);
  EXPECT_FALSE(holder.may_run(at(1)));
  EXPECT_TRUE(holder.renewed(*decision.send_renewal, 3000ms, at(5)).run);
  EXPECT_TRUE(holder.may_run(at(5)));
}

TEST(HolderTest, TheLeaseRunsFromTheIssueOfTheTicketNotFromItsAnswer) {
  Holder holder(3000ms);
  auto ticket = *holder.begin(at(0)).send_renewal;
  holder.renewed(ticket, 3000ms, at(2900));
  EXPECT_EQ(holder.deadline(), at(3000));
}

TEST(HolderTest, AnAnswerThatComesAfterItsLeaseIsOverLetsNothingRun) {
  Holder holder(3000ms);
  auto ticket = *holder.begin(at(0)).send_renewal;
  EXPECT_FALSE(holder.renewed(ticket, 3000ms, at(3001)).run);
}

TEST(HolderTest, FreezesAtTheDeadlineWithoutRenewal) {
  Holder holder(3000ms);
  holder.renewed(*holder.begin(at(0)).send_renewal, 3000ms, at(1));
  EXPECT_FALSE(holder.tick(at(2999)).freeze);
  EXPECT_TRUE(holder.tick(at(3000)).freeze);
  EXPECT_FALSE(holder.tick(at(3001)).freeze) << "once";
}

TEST(HolderTest, ARenewalAfterTheFreezeLetsItRunAgain) {
  Holder holder(3000ms);
  holder.renewed(*holder.begin(at(0)).send_renewal, 3000ms, at(1));
  auto last = holder.tick(at(3000));
  ASSERT_TRUE(last.freeze);
  ASSERT_TRUE(last.send_renewal);
  EXPECT_TRUE(holder.renewed(*last.send_renewal, 3000ms, at(3010)).run);
}

TEST(HolderTest, AWakeAfterTheDeadlineRenewsFirst) {
  Holder holder(3000ms);
  holder.renewed(*holder.begin(at(0)).send_renewal, 3000ms, at(1));
  auto decision = holder.wake(at(9000));
  EXPECT_TRUE(decision.freeze);
  EXPECT_TRUE(decision.send_renewal);
  EXPECT_FALSE(decision.run);
}

TEST(HolderTest, ASleeperAsksForNothingAndALateAnswerDoesNotWakeIt) {
  Holder holder(3000ms);
  auto ticket = *holder.begin(at(0)).send_renewal;
  holder.sleep();
  EXPECT_EQ(holder.next_deadline(), Instant::max());
  EXPECT_FALSE(holder.renewed(ticket, 3000ms, at(1)).run);
  EXPECT_TRUE(holder.begin(at(9000)).send_renewal);
}

TEST(HolderTest, ARefusalIsFinal) {
  Holder holder(3000ms);
  auto ticket = *holder.begin(at(0)).send_renewal;
  EXPECT_TRUE(holder.refused().freeze);
  EXPECT_FALSE(holder.renewed(ticket, 3000ms, at(1)).run);
  EXPECT_FALSE(holder.wake(at(2)).run);
}

TEST(TableTest, AnOldEpochIsRefusedFromTheGrantOn) {
  Table table;
  table.grant(site, Epoch::make(1, 0), 1000ms);
  ASSERT_TRUE(table.renew(site, Epoch::make(1, 0), at(0)));
  table.grant(site, Epoch::make(2, 0), 1000ms);
  EXPECT_EQ(table.renew(site, Epoch::make(1, 0), at(10)).error().code, Errc::stale_epoch);
}

TEST(TableTest, TheNextOwnerWaitsForTheLastLeaseAndItsGrace) {
  Table table;
  table.grant(site, Epoch::make(1, 0), 1000ms);
  ASSERT_TRUE(table.renew(site, Epoch::make(1, 0), at(500)));
  table.grant(site, Epoch::make(2, 0), 1000ms);
  EXPECT_EQ(table.free_at(site), at(1500) + grace(1000ms));
  EXPECT_EQ(table.renew(site, Epoch::make(2, 0), at(1500)).error().code, Errc::unavailable);
  EXPECT_TRUE(table.renew(site, Epoch::make(2, 0), table.free_at(site)));
}

TEST(TableTest, ProofOfDeathMakesTheFenceImmediate) {
  Table table;
  table.grant(site, Epoch::make(1, 0), 1000ms);
  ASSERT_TRUE(table.renew(site, Epoch::make(1, 0), at(500)));
  table.proved_dead(site, Epoch::make(1, 0));
  table.grant(site, Epoch::make(2, 0), 1000ms);
  EXPECT_TRUE(table.renew(site, Epoch::make(2, 0), at(510)));
}

TEST(TableTest, ProofAboutOneWhoNeverHadALeaseProvesNothingAboutTheLastWhoHad) {
  Table table;
  table.grant(site, Epoch::make(1, 0), 1000ms);
  ASSERT_TRUE(table.renew(site, Epoch::make(1, 0), at(500)));
  table.grant(site, Epoch::make(2, 0), 1000ms);
  table.grant(site, Epoch::make(3, 0), 1000ms);
  table.proved_dead(site, Epoch::make(2, 0));
  EXPECT_EQ(table.free_at(site), at(1500) + grace(1000ms));
  table.proved_dead(site, Epoch::make(1, 0));
  EXPECT_LE(table.free_at(site), at(500));
}

TEST(TableTest, ALateProofAboutAnOldOwnerDoesNotFreeWhatANewerOneHolds) {
  Table table;
  table.grant(site, Epoch::make(1, 0), 1000ms);
  ASSERT_TRUE(table.renew(site, Epoch::make(1, 0), at(0)));
  table.grant(site, Epoch::make(2, 0), 1000ms);
  ASSERT_TRUE(table.renew(site, Epoch::make(2, 0), at(2000)));
  table.grant(site, Epoch::make(3, 0), 1000ms);
  table.proved_dead(site, Epoch::make(1, 0));
  EXPECT_EQ(table.free_at(site), at(3000) + grace(1000ms));
}

TEST(TableTest, ARestartedControlThatDoesNotKnowWhoHeldTheLeaseTakesNoProof) {
  Table table;
  table.recover(site, Epoch::make(4, 0), 1000ms, false, at(100));
  table.grant(site, Epoch::make(5, 0), 1000ms);
  table.proved_dead(site, Epoch::make(4, 0));
  EXPECT_GE(table.free_at(site), at(1100));
}

TEST(TableTest, ARestartedControlAssumesThatItRenewedJustBeforeItDied) {
  Table table;
  table.recover(site, Epoch::make(4, 0), 1000ms, true, at(100));
  EXPECT_TRUE(table.renew(site, Epoch::make(4, 0), at(110))) << "the owner itself goes on";
  table.grant(site, Epoch::make(5, 0), 1000ms);
  EXPECT_GE(table.free_at(site), at(1110));

  Table other;
  other.recover(site, Epoch::make(4, 0), 1000ms, false, at(100));
  EXPECT_FALSE(other.renew(site, Epoch::make(4, 0), at(110))) << "an owner before it may still run";
}

}  // namespace
}  // namespace yado::lease
