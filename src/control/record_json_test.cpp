#include "control/record_json.hpp"

#include <gtest/gtest.h>

namespace yado::control {
namespace {

Record full() {
  Record record;
  record.spec.name = WorkloadId("site");
  record.spec.container.root = "/srv/site";
  record.spec.container.command = {"serve"};
  record.spec.service = {.hosts = {"site.test"}, .port = 8000};
  record.spec.policy.lifetime = 5s;
  record.revision = 3;
  record.stopped = true;
  record.epoch = Epoch::make(17, 2);
  record.serial = 40;
  record.phase = OwnerPhase::up;
  record.host = HostId("h1");
  record.instance = InstanceId("site.39");
  record.endpoint = {"10.77.0.11", 20000};
  record.image = ReadyImage{ImageId("site-img.12"), 3, {ImageId("site-img.10"), ImageId("site-img.11")}, InstanceId("site.39")};
  record.acknowledged = ReadyImage{ImageId("site-img.11"), 3, {ImageId("site-img.10")}, InstanceId("site.38"), WorkloadId("golden")};
  record.raised_from = ImageId("site-img.9");
  record.standby = InstanceId("site.40");
  record.standby_host = HostId("h2");
  record.standby_revision = 3;
  return record;
}

TEST(RecordJsonTest, WhatIsWrittenIsRead) {
  EXPECT_EQ(parse_record(dump_record(full())), full());
  Record young;
  young.spec = full().spec;
  for (OwnerPhase phase : {OwnerPhase::absent, OwnerPhase::raising, OwnerPhase::up}) {
    young.phase = phase;
    EXPECT_EQ(parse_record(dump_record(young)), young);
  }
}

TEST(RecordJsonTest, WhatIsNoRecordIsCorrupt) {
  const std::string good = dump_record(full());
  for (std::string bad : {std::string(), std::string("{}"), good.substr(0, good.size() / 2), std::string("[1]")}) {
    auto record = parse_record(bad);
    ASSERT_FALSE(record) << bad;
    EXPECT_EQ(record.error().code, Errc::corrupt) << bad;
  }
  std::string unknown = good;
  unknown.replace(unknown.find("\"up\""), 4, "\"ko\"");
  EXPECT_FALSE(parse_record(unknown));
}

}  // namespace
}  // namespace yado::control
