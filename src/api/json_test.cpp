#include "api/json.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "api/fields.hpp"

namespace yado {
namespace {

using api::parse;

// Every field differs from its default, so that one forgotten in either direction shows.
WorkloadSpec full_spec() {
  WorkloadSpec spec;
  spec.name = WorkloadId("site");
  spec.container = {.root = "/srv/site",
                    .command = {"/usr/bin/gunicorn", "site:app"},
                    .environment = {{"LANG", "C.UTF-8"}, {"Q", "\"quoted\"\n"}},
                    .working_directory = "/srv",
                    .uid = 33,
                    .gid = 34,
                    .mounts = {{.source = "/shared", .target = "/data", .read_only = false}},
                    .memory_bytes = 512 << 20,
                    .cpus = 1.5,
                    .pids = 77};
  spec.service = {.hosts = {"site.test", "www.site.test"},
                  .port = 8000,
                  .ready = {.path = "/ready", .status = 204, .contains = "ok", .start_limit = 1234ms},
                  .idempotency_header = "idempotency-key"};
  spec.policy = {.standby = StandbyLevel::frozen,
                 .consistency = Consistency::exclusive,
                 .lease = 700ms,
                 .relocations = 3,
                 .relocations_per = 5000ms,
                 .lifetime = 60'000ms,
                 .image_age = 1ms,
                 .frozen_age = 2ms,
                 .warm_up = 3,
                 .placement = {HostId("h2"), HostId("h1")}};
  return spec;
}

InstanceReport full_instance() {
  return {.id = InstanceId("site.7"),
          .workload = WorkloadId("site"),
          .purpose = Purpose::standby,
          .epoch = Epoch::make(7, 2),
          .state = InstanceState::frozen,
          .endpoint = {"10.1.0.2", 31000},
          .image = ImageId("site-img.3"),
          .age = 99ms,
          .how = "exit status 7"};
}

HostReport full_host() {
  return {.host = HostId("h1"),
          .boot = "b-1",
          .agent = {"10.1.0.1", 7001},
          .sequence = (std::uint64_t{1} << 63) + 1,
          .instances = {full_instance()},
          .images = {{ImageId("site-img.3"), WorkloadId("site"), "abc", 12345, 4ms}},
          .fences = {{WorkloadId("site"), Epoch::make(9, 1)}},
          .memory_free_bytes = 1,
          .load = 0.25,
          .checkpoint_works = false};
}

RouteTable full_table() {
  Route route{.workload = WorkloadId("site"),
              .service = full_spec().service,
              .consistency = Consistency::exclusive,
              .relocations = 1,
              .relocations_per = 2ms,
              .lifetime = 3ms,
              .state = RouteState::up,
              .epoch = Epoch(1025),
              .host = HostId("h1"),
              .endpoint = {"10.1.0.2", 31000},
              .fallback = {HostId("h2")}};
  return {.version = 9, .routes = {route}, .hosts = {{HostId("h1"), {"10.1.0.1", 7001}}}};
}

template <class T>
std::string text_of(const T& value) {
  return api::dump(nlohmann::json(value));
}

template <class T>
std::string refusal(const nlohmann::json& json) {
  auto result = parse<T>(api::dump(json));
  if (result) return "(accepted)";
  EXPECT_EQ(result.error().code, Errc::invalid_argument);
  return result.error().message;
}

TEST(ApiJsonTest, EveryValueComesBackAsItWas) {
  EXPECT_EQ(parse<WorkloadSpec>(text_of(full_spec())), full_spec());
  EXPECT_EQ(parse<InstanceReport>(text_of(full_instance())), full_instance());
  EXPECT_EQ(parse<ImageReport>(text_of(full_host().images[0])), full_host().images[0]);
  EXPECT_EQ(parse<HostReport>(text_of(full_host())), full_host());
  EXPECT_EQ(parse<RouteTable>(text_of(full_table())), full_table());
  EXPECT_EQ(parse<Route>(text_of(full_table().routes[0])), full_table().routes[0]);
  EXPECT_EQ(parse<Endpoint>(text_of(Endpoint{"::1", 65535})), (Endpoint{"::1", 65535}));
  const RaiseTimes times{.raise = 1500us, .ready = 2s};
  EXPECT_EQ(parse<RaiseTimes>(text_of(times)), times);
}

TEST(ApiJsonTest, ValuesWithEverythingOptionalLeftOutComeBackToo) {
  Route asleep{.workload = WorkloadId("site")};
  EXPECT_EQ(parse<Route>(text_of(asleep)), asleep);
  InstanceReport cold{.id = InstanceId("site.1"), .workload = WorkloadId("site")};
  EXPECT_EQ(parse<InstanceReport>(text_of(cold)), cold);
}

TEST(ApiJsonTest, AnErrorKeepsItsCodeAndAnUnknownCodeIsInternal) {
  auto error = parse<Error>(text_of(Error{Errc::stale_epoch, "epoch e3 is older than e4"}));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Errc::stale_epoch);
  EXPECT_EQ(error->message, "epoch e3 is older than e4");
  EXPECT_EQ(parse<Error>(R"({"code":"from-the-future","message":"x"})")->code, Errc::internal);
}

TEST(ApiJsonTest, DurationsEpochsAndWordsAreWrittenAsTheManualSays) {
  const nlohmann::json spec = full_spec();
  EXPECT_EQ(spec["policy"]["lease_ms"], 700);
  EXPECT_EQ(spec["policy"]["standby"], "frozen");
  EXPECT_EQ(nlohmann::json(RaiseTimes{.raise = 1500us})["raise_us"], 1500);
  EXPECT_EQ(nlohmann::json(full_instance())["epoch"], 7 * 256 + 2);
}

TEST(ApiJsonTest, AWrongTypeNamesTheField) {
  nlohmann::json host = full_host();
  host["instances"][0]["endpoint"]["port"] = "31000";
  EXPECT_EQ(refusal<HostReport>(host), "instances[0].endpoint.port: expected a number, found a string");
  host = full_host();
  host["instances"] = nlohmann::json::object();
  EXPECT_EQ(refusal<HostReport>(host), "instances: expected an array, found an object");
  EXPECT_EQ(refusal<HostReport>(3), "message: expected an object, found a number");
}

TEST(ApiJsonTest, NumbersOutOfRangeAreRefusedAndNeverWrapped) {
  EXPECT_EQ(refusal<Endpoint>({{"address", "a"}, {"port", 70000}}), "port: 70000 is not between 0 and 65535");
  EXPECT_EQ(refusal<Endpoint>({{"address", "a"}, {"port", -1}}), "port: -1 is not between 0 and 65535");
  EXPECT_EQ(refusal<Endpoint>({{"address", "a"}, {"port", 1.5}}), "port: 1.5 is not a whole number");
  EXPECT_NE(refusal<RaiseTimes>({{"raise_us", std::numeric_limits<std::int64_t>::max()}, {"ready_us", 0}}),
            "(accepted)");
  nlohmann::json spec = full_spec();
  spec["service"]["ready"]["status"] = std::int64_t{1} << 40;
  EXPECT_EQ(refusal<WorkloadSpec>(spec),
            "service.ready.status: 1099511627776 is not between -2147483648 and 2147483647");
  EXPECT_FALSE(parse<Endpoint>(R"({"address":"a","port":1e999})"));
}

TEST(ApiJsonTest, AnUnknownWordIsRefusedWithItsField) {
  nlohmann::json spec = full_spec();
  spec["policy"]["standby"] = "warm";
  EXPECT_EQ(refusal<WorkloadSpec>(spec), "policy.standby: \"warm\" is not a word known here");
}

TEST(ApiJsonTest, NamesThatCouldLeaveADirectoryAreRefused) {
  nlohmann::json image = full_host().images[0];
  image["id"] = "../../etc";
  EXPECT_NE(refusal<ImageReport>(image).find("id: \"../../etc\" is not a valid name"), std::string::npos);
  image["id"] = "";
  EXPECT_EQ(refusal<ImageReport>(image), "id: must not be empty");
  image.erase("id");
  EXPECT_EQ(refusal<ImageReport>(image), "id: is missing");
}

TEST(ApiJsonTest, KeysOfANewerVersionAreIgnored) {
  nlohmann::json host = full_host();
  host["gpu"] = {{"count", 2}};
  EXPECT_EQ(parse<HostReport>(api::dump(host)), full_host());
}

TEST(ApiJsonTest, TextThatIsNoJsonSaysWhereItStops) {
  EXPECT_EQ(parse<Endpoint>("{\"address\":").error().message, "not JSON at byte 12 of 11");
  EXPECT_FALSE(parse<Endpoint>(""));
  EXPECT_FALSE(parse<Endpoint>(std::string_view("\0\xff", 2)));
}

TEST(ApiJsonTest, ADepthThatWouldEatTheStackIsRefused) {
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  EXPECT_EQ(api::parse_json(deep).error().message, "JSON nested deeper than 64 levels");
  EXPECT_TRUE(api::parse_json(std::string(64, '[') + std::string(64, ']')));
  EXPECT_TRUE(api::parse_json("\"" + std::string(100, '[') + "\\\"[\""));
}

TEST(ApiJsonTest, TextThatIsNotUtf8IsWrittenAndNotThrown) {
  EXPECT_EQ(text_of(Error{Errc::io, "\xff"}), "{\"code\":\"io\",\"message\":\"\xEF\xBF\xBD\"}");
}

TEST(ApiJsonTest, LongWrongValuesAreCutInTheMessage) {
  nlohmann::json image = full_host().images[0];
  image["id"] = std::string(100'000, 'A');
  EXPECT_LT(refusal<ImageReport>(image).size(), 200U);
}

}  // namespace
}  // namespace yado
