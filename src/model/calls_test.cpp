#include "model/calls.hpp"

#include <gtest/gtest.h>

#include <set>

namespace yado {
namespace {

const WorkloadId site("site");
const Epoch epoch = Epoch::make(3, 0);

WorkloadSpec spec() {
  WorkloadSpec made;
  made.name = site;
  return made;
}

std::vector<AgentCall> one_of_each() {
  return {RaiseCall{.workload = site, .epoch = epoch},     PrepareCall{.spec = spec(), .epoch = epoch},
          BuildCall{.spec = spec(), .epoch = epoch},       PullCall{.spec = spec(), .epoch = epoch},
          StopCall{.workload = site, .epoch = epoch},      SleepCall{.workload = site, .epoch = epoch},
          DropImageCall{.workload = site, .epoch = epoch}, InspectCall{.workload = site, .epoch = epoch},
          HandoverCall{.spec = spec(), .epoch = epoch},
          ResplitCall{.spec = spec(), .epoch = epoch},     ExpectCall{.spec = spec(), .epoch = epoch},
          MergeCall{.workload = site, .epoch = epoch}};
}

TEST(CallsTest, EveryCallSaysWhichWorkloadItIsAboutAndUnderWhichRight) {
  const auto calls = one_of_each();
  ASSERT_EQ(calls.size(), std::variant_size_v<AgentCall>);
  for (const AgentCall& call : calls) {
    EXPECT_EQ(workload_of(call), site) << name_of(call);
    EXPECT_EQ(epoch_of(call), epoch) << name_of(call);
  }
}

TEST(CallsTest, EveryKindHasANameOfItsOwnThatMayStandInAUrl) {
  std::set<std::string_view> names;
  for (const AgentCall& call : one_of_each()) {
    EXPECT_TRUE(names.insert(name_of(call)).second) << name_of(call);
    EXPECT_TRUE(valid_name(name_of(call))) << name_of(call);
  }
}

TEST(CallsTest, ARaiseIsNamedAfterItsFieldNotItsSpec) {
  // A gate without control has no spec to send: the field must do.
  const AgentCall call = RaiseCall{.spec = std::nullopt, .workload = site, .epoch = epoch};
  EXPECT_EQ(workload_of(call), site);
}

}  // namespace
}  // namespace yado
