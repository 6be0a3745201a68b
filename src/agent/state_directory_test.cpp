#include "agent/state_directory.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "agent/free_list.hpp"
#include "agent/heartbeat.hpp"

namespace yado::agent {
namespace {

namespace fs = std::filesystem;

struct StateDirectoryTest : ::testing::Test {
  fs::path root;
  void SetUp() override {
    std::string name = "/tmp/yado-state-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root = name;
  }
  void TearDown() override { fs::remove_all(root); }
  StateDirectory open() {
    auto opened = StateDirectory::open(root / "state");
    EXPECT_TRUE(opened) << opened.error().text();
    return std::move(*opened);
  }
};

TEST_F(StateDirectoryTest, WhatWasSavedIsReadBack) {
  const StateDirectory state = open();
  ASSERT_TRUE(state.save_fence(WorkloadId("a"), Epoch::make(7, 3)));
  ASSERT_TRUE(state.save_fence(WorkloadId("a"), Epoch::make(8, 0)));
  WorkloadSpec spec;
  spec.name = WorkloadId("a");
  spec.container.command = {"serve"};
  ASSERT_TRUE(state.save_spec(spec));
  const InstanceRecord record{.id = InstanceId("a.1"),
                              .workload = WorkloadId("a"),
                              .purpose = Purpose::standby,
                              .epoch = Epoch::make(8, 0),
                              .image = ImageId("a-img.1"),
                              .address = net::Ipv4::of(10, 88, 0, 2),
                              .published = 20'000,
                              .service = 80,
                              .since_ns = 5,
                              .ready = true};
  ASSERT_TRUE(state.save_instance(record));
  EXPECT_EQ(state.fences()->at(WorkloadId("a")), Epoch::make(8, 0));
  EXPECT_THAT(*state.specs(), ::testing::ElementsAre(spec));
  EXPECT_THAT(*state.instances(), ::testing::ElementsAre(record));
  ASSERT_TRUE(state.remove_instance(record.id));
  EXPECT_TRUE(state.instances()->empty());
}

TEST_F(StateDirectoryTest, AFenceThatCannotBeReadIsAnErrorThatSaysWhatToDo) {
  const StateDirectory state = open();
  std::ofstream(root / "state/fences/a") << "17x\n";
  const auto fences = state.fences();
  ASSERT_FALSE(fences);
  EXPECT_THAT(fences.error().message, ::testing::AllOf(::testing::HasSubstr("17x"), ::testing::HasSubstr("yado ps")));
}

TEST_F(StateDirectoryTest, WhatACrashLeftOfAnAtomicWriteIsNoFence) {
  const StateDirectory state = open();
  std::ofstream(root / "state/fences/a.new") << "";
  EXPECT_TRUE(state.fences()->empty());
}

TEST_F(StateDirectoryTest, ADamagedSpecIsLeftOutAndADamagedRecordIsSomethingToClearAway) {
  const StateDirectory state = open();
  std::ofstream(root / "state/specs/a.json") << "{";
  EXPECT_TRUE(state.specs()->empty());
  fs::create_directories(root / "state/instances/a.1");
  const auto instances = state.instances();
  ASSERT_EQ(instances->size(), 1u);
  EXPECT_EQ(instances->front().id, InstanceId("a.1"));
  EXPECT_TRUE(instances->front().workload.empty());
}

TEST_F(StateDirectoryTest, ASecondOneIsRefusedWhileTheFirstIsOpen) {
  {
    const StateDirectory first = open();
    const auto second = StateDirectory::open(root / "state");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Errc::conflict);
  }
  EXPECT_TRUE(StateDirectory::open(root / "state"));
}

TEST(FreeListTest, ANumberThatWasGivenBackRestsAsLongAsPossible) {
  FreeList list(5, 7);
  EXPECT_EQ(list.take(), 5u);
  list.give_back(5);
  EXPECT_EQ(list.take(), 6u);
  EXPECT_EQ(list.take(), 7u);
  EXPECT_EQ(list.take(), 5u);
  EXPECT_EQ(list.take(), std::nullopt);
}

TEST(FreeListTest, WhatIsMarkedIsNotGivenOut) {
  FreeList list(5, 6);
  list.mark_taken(5);
  list.mark_taken(99);
  EXPECT_EQ(list.take(), 6u);
  EXPECT_EQ(list.take(), std::nullopt);
}

TEST(HeartbeatAnswerTest, ListsAndPaceAreReadAndWrongOnesAreErrors) {
  const auto answer = heartbeat_answer_from_json(
      R"({"retire":[{"workload":"a","instance":"a.1","epoch":256}],"drop":[{"workload":"a","image":"a-img.1","epoch":256}],"heartbeat_ms":300})");
  ASSERT_TRUE(answer) << answer.error().text();
  ASSERT_EQ(answer->retire.size(), 1u);
  EXPECT_EQ(answer->retire[0].instance, InstanceId("a.1"));
  ASSERT_EQ(answer->drop.size(), 1u);
  EXPECT_EQ(answer->pace, 300ms);
  EXPECT_TRUE(heartbeat_answer_from_json("{}")) << "nothing to do";
  EXPECT_EQ(heartbeat_answer_from_json(R"({"heartbeat_ms":0})")->pace, 10ms) << "never a flood";
  for (const char* wrong : {"", "[]", R"({"retire":1})", R"({"retire":[1]})", R"({"retire":[{"workload":"a"}]})"})
    EXPECT_FALSE(heartbeat_answer_from_json(wrong)) << wrong;
}

}  // namespace
}  // namespace yado::agent
