#include <gtest/gtest.h>

#include "detect/brake.hpp"
#include "detect/heartbeat.hpp"
#include "detect/rtt.hpp"

namespace yado::detect {
namespace {

constexpr RttEstimator::Bounds bounds{.unknown = 100ms, .least = 2ms, .most = 1s};
Instant at(int ms) { return Instant(milliseconds(ms)); }

TEST(RttEstimatorTest, BeforeAnythingIsKnownItIsThePapersHundredMilliseconds) {
  EXPECT_EQ(RttEstimator(bounds).timeout(), 100ms);
}

TEST(RttEstimatorTest, LearnsAHostsOwnRoundTrip) {
  RttEstimator near(bounds), far(bounds);
  for (int i = 0; i < 50; ++i) {
    near.measured(100us);
    far.measured(40ms);
  }
  EXPECT_EQ(near.timeout(), 2ms) << "bounded below: a busy scheduler is not a death";
  EXPECT_GT(far.timeout(), 40ms);
  EXPECT_LT(far.timeout(), 60ms);
}

TEST(RttEstimatorTest, JitterWidensTheTimeout) {
  RttEstimator calm(bounds), jittery(bounds);
  for (int i = 0; i < 50; ++i) {
    calm.measured(10ms);
    jittery.measured(i % 2 ? 2ms : 18ms);
  }
  EXPECT_GT(jittery.timeout(), 2 * calm.timeout());
}

TEST(HeartbeatDetectorTest, OneLostHeartbeatIsNotSilence) {
  HeartbeatDetector detector(200ms, 600ms, at(0));
  for (int ms = 200; ms <= 4000; ms += 200) detector.heard(at(ms));
  EXPECT_FALSE(detector.silent(at(4401)));
  EXPECT_TRUE(detector.silent(at(4700)));
}

TEST(HeartbeatDetectorTest, TheFirstOneHasATimeOfItsOwn) {
  HeartbeatDetector detector(200ms, 3s, at(0));
  EXPECT_FALSE(detector.silent(at(2999)));
  EXPECT_TRUE(detector.silent(at(3000)));
  detector.heard(at(2000));
  EXPECT_TRUE(detector.silent(at(2700))) << "the long wait says nothing about the host's habit";
}

TEST(HeartbeatDetectorTest, AnIrregularHostIsGivenMoreTime) {
  HeartbeatDetector detector(200ms, 600ms, at(0));
  int ms = 0;
  for (int i = 0; i < 40; ++i) detector.heard(at(ms += i % 2 ? 50 : 600));
  EXPECT_FALSE(detector.silent(at(ms + 900)));
}

TEST(BrakeTest, MostHostsAtOnceMeansMe) {
  EXPECT_FALSE(brake(1, 3));
  EXPECT_TRUE(brake(2, 3));
  EXPECT_FALSE(brake(1, 1)) << "with one host nothing can be told apart";
  EXPECT_FALSE(brake(2, 4));
}

}  // namespace
}  // namespace yado::detect
