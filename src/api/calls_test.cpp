#include "api/calls.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace yado {
namespace {

WorkloadSpec spec() {
  WorkloadSpec spec;
  spec.name = WorkloadId("site");
  spec.container.root = "/srv";
  spec.container.command = {"app"};
  spec.service.hosts = {"site.test"};
  spec.service.port = 80;
  return spec;
}

TEST(ApiCallsTest, EveryCallComesBackAsItWas) {
  const WorkloadId workload("site");
  const InstanceId instance("site.7");
  const ImageId image("site-img.3");
  const Epoch epoch = Epoch::make(7, 1);
  const AgentCall calls[] = {
      RaiseCall{spec(), workload, instance, epoch, image},
      RaiseCall{std::nullopt, workload, instance, epoch, std::nullopt},
      PrepareCall{spec(), instance, epoch, image},
      PrepareCall{spec(), instance, epoch, std::nullopt},
      BuildCall{spec(), instance, epoch, image, ImageId("site-img.0"), {{HostId("h2"), {"10.0.0.2", 7000}}}, 50 << 20},
      PullCall{spec(), epoch, image, {"10.1.0.2", 7001}},
      PullCall{spec(), epoch, image, {"10.1.0.2", 7001}, {{ImageId("site-img.0"), {"10.1.0.3", 7001}}}, true},
      PullCall{spec(), epoch, image, {"10.1.0.2", 7001}, {{ImageId("site-img.1.h2"), {"10.1.0.3", 7001}}}, true, true},
      MergeCall{workload, epoch, image, {{ImageId("site-img.0"), {"10.1.0.3", 7001}}}},
      StopCall{workload, instance, epoch},
      SleepCall{workload, instance, epoch},
      DropImageCall{workload, epoch, image},
      InspectCall{workload, instance, epoch},
      ResplitCall{spec(), instance, epoch},
      HandoverCall{spec(), instance, epoch, image, HostId("h2")},
      HandoverCall{spec(), instance, epoch, image, HostId("h2"), true, {ImageId("site-move.1"), ImageId("site-move.2")}, 5},
      ExpectCall{spec(), instance, epoch},
      ExpectCall{spec(), instance, epoch, {ImageId("site-move.1")}},
  };
  for (const AgentCall& call : calls) {
    auto back = api::parse_call(name_of(call), api::dump(nlohmann::json(call)));
    ASSERT_TRUE(back) << name_of(call) << ": " << back.error().message;
    EXPECT_EQ(*back, call) << name_of(call);
  }
}

TEST(ApiCallsTest, AnUnknownKindIsNotFoundAndACallWithoutAnEpochIsRefused) {
  EXPECT_EQ(api::parse_call("explode", "{}").error().code, Errc::not_found);
  EXPECT_EQ(api::parse_call("stop", R"({"workload":"site","instance":"site.7"})").error().message, "epoch: is missing");
  EXPECT_EQ(api::parse_call("stop", R"({"workload":"site","instance":"site.7","epoch":-1})").error().message,
            "epoch: -1 is not between 0 and 18446744073709551615");
  EXPECT_EQ(api::parse_call("raise", R"({"workload":"site","instance":"site.7","epoch":1,"image":"../x"})")
                .error()
                .message.substr(0, 6),
            "image:");
}

TEST(ApiCallsTest, RepliesAndEventsComeBackAsTheyWere) {
  const CallReply reply{.instance = InstanceId("site.7"),
                        .endpoint = {"10.1.0.2", 31000},
                        .way = Way::frozen,
                        .times = {.raise = 2ms, .ready = 3ms},
                        .image = ImageReport{.id = ImageId("site-img.3"), .workload = WorkloadId("site"), .spec_hash = "abc", .bytes = 5, .age = 6ms, .base = ImageId("site-img.2"), .merged = true},
                        .state = InstanceState::frozen,
                        .sequence = 8,
                        .detail = "image: checksum differs"};
  EXPECT_EQ(api::parse<CallReply>(api::dump(nlohmann::json(reply))), reply);
  EXPECT_EQ(api::parse<CallReply>(api::dump(nlohmann::json(CallReply{}))), CallReply{});
  const Event event{.kind = "grant",
                    .workload = WorkloadId("site"),
                    .host = HostId("h1"),
                    .instance = InstanceId("site.7"),
                    .epoch = Epoch(9),
                    .fields = {{"evidence", "silent"}}};
  EXPECT_EQ(api::parse<Event>(api::dump(nlohmann::json(event))), event);
}

}  // namespace
}  // namespace yado
