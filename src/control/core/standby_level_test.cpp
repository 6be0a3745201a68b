#include "control/core/control_core.hpp"

#include <gtest/gtest.h>

namespace yado::control {
namespace {

/// Three hosts whose agents carry out everything at once.
class StandbyLevelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"h1", "h2", "h3"}) hosts_[HostId(name)] = HostReport{.host = HostId(name), .boot = "1", .agent = {"10.0.0.1", 1}};
    spec_.name = WorkloadId("site");
    spec_.policy.standby = StandbyLevel::frozen;
    for (auto& [id, host] : hosts_) beat(id);
  }

  HeartbeatReply beat(const HostId& host) {
    ++hosts_[host].sequence;
    HeartbeatReply reply = core_.heartbeat(hosts_[host], now_);
    carry_out();
    return reply;
  }

  void deploy() {
    core_.deploy(++asks_, spec_, now_);
    carry_out();
  }

  void carry_out() {
    for (std::vector<Action> actions = core_.take(); !actions.empty(); actions = core_.take())
      for (const Action& action : actions)
        if (const auto* call = std::get_if<Call>(&action)) core_.call_done(call->id, carry_out(*call), now_);
  }

  CallReply carry_out(const Call& call) {
    HostReport& host = hosts_.at(call.host);
    CallReply reply;
    reply.sequence = host.sequence;
    if (const auto* raise = std::get_if<RaiseCall>(&call.call)) {
      raises_.push_back(*raise);
      reply.instance = raise->instance;
      host.instances.push_back({.id = raise->instance, .workload = raise->workload, .epoch = raise->epoch, .state = InstanceState::running});
    } else if (const auto* prepare = std::get_if<PrepareCall>(&call.call)) {
      host.instances.push_back({.id = prepare->instance, .workload = prepare->spec.name, .purpose = Purpose::standby,
                                .state = InstanceState::frozen, .image = prepare->image});
    } else if (const auto* build = std::get_if<BuildCall>(&call.call)) {
      host.images.push_back({.id = build->image, .workload = build->spec.name});
      reply.image = host.images.back();
    } else if (const auto* pull = std::get_if<PullCall>(&call.call)) {
      host.images.push_back({.id = pull->image, .workload = pull->spec.name});
      reply.image = host.images.back();
    }
    return reply;
  }

  WorkloadView view() const { return core_.workloads().at(0); }

  const Instant now_{std::chrono::hours(1)};
  ControlCore core_{Settings{}};
  std::map<HostId, HostReport> hosts_;
  WorkloadSpec spec_;
  std::vector<RaiseCall> raises_;
  AskId asks_ = 0;
};

TEST_F(StandbyLevelTest, FrozenMeansAnImageOnTwoHostsAndAFrozenStandbyBesideTheOwner) {
  deploy();
  EXPECT_EQ(view().image_holders.size(), 2u);
  ASSERT_TRUE(view().standby);
  EXPECT_NE(view().standby_host, view().record.host);
}

TEST_F(StandbyLevelTest, ALoweredStandbyLevelIsObeyed) {
  deploy();
  ASSERT_TRUE(view().standby);
  const HostId standby_host = view().standby_host;
  const InstanceId standby = view().standby->id;

  spec_.policy.standby = StandbyLevel::image;
  deploy();
  EXPECT_FALSE(view().standby);
  EXPECT_EQ(view().image_holders.size(), 2u) << "the image is still wanted";
  const HeartbeatReply frozen_reply = beat(standby_host);
  ASSERT_EQ(frozen_reply.retire.size(), 1u);
  EXPECT_EQ(frozen_reply.retire[0].instance, standby);
  EXPECT_TRUE(frozen_reply.drop.empty());

  spec_.policy.standby = StandbyLevel::cold;
  deploy();
  EXPECT_TRUE(view().image_holders.empty());
  EXPECT_EQ(beat(standby_host).drop.size(), 1u);
  raises_.clear();
  core_.move(++asks_, spec_.name, std::nullopt, now_);
  carry_out();
  ASSERT_EQ(raises_.size(), 1u);
  EXPECT_FALSE(raises_[0].image) << "a cold workload is started, not restored";
}

TEST_F(StandbyLevelTest, ARaisedStandbyLevelIsBuiltAnew) {
  deploy();
  spec_.policy.standby = StandbyLevel::cold;
  deploy();
  for (auto& [id, host] : hosts_) {  // their agents have dropped it
    host.images.clear();
    std::erase_if(host.instances, [](const InstanceReport& one) { return one.purpose == Purpose::standby; });
    beat(id);
  }
  spec_.policy.standby = StandbyLevel::frozen;
  deploy();
  EXPECT_EQ(view().image_holders.size(), 2u);
  EXPECT_TRUE(view().standby);
}

}  // namespace
}  // namespace yado::control
