#include "workload/vm/qmp.hpp"

#include <cstring>
#include <fcntl.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "os/file.hpp"
#include "os/pidfd.hpp"
#include "workload/vm/sockets.hpp"

namespace yado::vm {
namespace {


constexpr nanoseconds hang = 30s;
constexpr std::string_view greeting = R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}})";

/// The other side, played from a script: what it says without being asked, then one answer to each command.
/// "ID" in an answer stands for the command's number.
class QmpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = make_socket_pair();
    ASSERT_OK(made);
    ours_ = std::move(made->ours);
    theirs_ = std::move(made->theirs);
  }
  void TearDown() override {
    if (qemu_.joinable()) qemu_.join();
  }
  static std::string ok(std::string_view result = "{}") { return fmt::format(R"({{"return": {}, "id": ID}})", result); }

  void play(std::string first, std::vector<std::string> answers) {
    qemu_ = std::thread([this, first = std::move(first), answers = std::move(answers)] {
      (void)os::write_all(theirs_, first + "\r\n");
      for (std::string answer : answers) {
        const std::string command = read_line();
        const std::size_t at = command.find("\"id\":");
        if (at == std::string::npos) break;
        const std::string id = fmt::format("{}", std::strtoull(command.c_str() + at + 5, nullptr, 10));
        for (std::size_t hole; (hole = answer.find("ID")) != std::string::npos;) answer.replace(hole, 2, id);
        if (!answer.empty()) (void)os::write_all(theirs_, answer + "\r\n");
        heard_.push_back(command);
      }
      theirs_.reset();
    });
  }
  std::string read_line() {
    std::string line;
    for (char c; ::read(theirs_.get(), &c, 1) == 1 && c != '\n';) line += c;
    return line;
  }
  Result<Qmp> open() { return Qmp::open(std::move(ours_), hang); }

  os::Fd ours_, theirs_;
  std::thread qemu_;
  std::vector<std::string> heard_;  ///< to be read after joining
};

TEST_F(QmpTest, GreetingIsReadAndNegotiationLeft) {
  play(std::string(greeting), {ok()});
  const auto qmp = open();
  ASSERT_OK(qmp);
  EXPECT_EQ(qmp->version(), (QemuVersion{7, 2, 22}));
  qemu_.join();
  ASSERT_EQ(heard_.size(), 1U);
  EXPECT_NE(heard_[0].find("\"qmp_capabilities\""), std::string::npos);
}

TEST_F(QmpTest, EventsBetweenACommandAndItsAnswerAreKeptInOrder) {
  play(std::string(greeting), {ok(), R"({"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}})" "\r\n"
                                     R"({"event": "SHUTDOWN", "data": {"guest": true}, "timestamp": {"seconds": 6, "microseconds": 0}})" "\r\n" +
                                         ok(R"({"status": "paused"})")});
  auto qmp = open();
  ASSERT_OK(qmp);
  const auto answer = qmp->execute("query-status", "{}", hang);
  ASSERT_OK(answer);
  EXPECT_EQ(*answer, R"({"status":"paused"})");
  const auto first = qmp->next_event(0ns), second = qmp->next_event(0ns);
  ASSERT_TRUE(first && *first && second && *second);
  EXPECT_EQ((*first)->name, "STOP");
  EXPECT_EQ((*first)->at, 5'000'007us);
  EXPECT_EQ((*second)->name, "SHUTDOWN");
  EXPECT_EQ((*second)->data, R"({"guest":true})");
}

TEST_F(QmpTest, ErrorsHaveQemusWordsAndAreToldApart) {
  play(std::string(greeting), {ok(), R"({"id": ID, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}})",
                               R"({"id": ID, "error": {"class": "DeviceNotFound", "desc": "Device 'd' not found"}})",
                               R"({"id": ID, "error": {"class": "GenericError", "desc": "State blocked"}})",
                               R"({"id": ID, "error": {}})"});
  auto qmp = open();
  ASSERT_OK(qmp);
  const auto unknown = qmp->execute("x", "{}", hang);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, Errc::unsupported);
  EXPECT_EQ(unknown.error().message, "QMP x: The command x has not been found");
  EXPECT_EQ(qmp->execute("d", "{}", hang).error().code, Errc::not_found);
  EXPECT_EQ(qmp->execute("m", "{}", hang).error().code, Errc::io);
  EXPECT_EQ(qmp->execute("n", "{}", hang).error().code, Errc::io);
}

TEST_F(QmpTest, ALateAnswerIsThrownAway) {
  play(std::string(greeting), {ok(), "", R"({"return": "late", "id": 2})" "\r\n" + ok("\"in time\"")});
  auto qmp = open();
  ASSERT_OK(qmp);
  const auto late = qmp->execute("slow", "{}", 1ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::timed_out);
  const auto answer = qmp->execute("next", "{}", hang);
  ASSERT_OK(answer);
  EXPECT_EQ(*answer, "\"in time\"");
}

TEST_F(QmpTest, TheEndIsAnErrorAfterTheLastEvent) {
  play(std::string(greeting), {ok(), R"({"event": "SHUTDOWN"})"});
  auto qmp = open();
  ASSERT_OK(qmp);
  const auto answer = qmp->execute("quit", "{}", hang);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Errc::application);
  const auto event = qmp->next_event(hang);
  ASSERT_TRUE(event && *event);
  EXPECT_EQ((*event)->name, "SHUTDOWN");
  EXPECT_EQ(qmp->next_event(hang).error().code, Errc::application);
}

TEST_F(QmpTest, NoEventWithinTheLimitIsNoError) {
  play(std::string(greeting), {ok(), ok()});
  auto qmp = open();
  ASSERT_OK(qmp);
  const auto event = qmp->next_event(1ms);
  ASSERT_OK(event);
  EXPECT_FALSE(event->has_value());
  ASSERT_OK(qmp->execute("done", "{}", hang));
}

TEST_F(QmpTest, WhatIsNoGreetingIsRefused) {
  for (const char* wrong : {"SSH-2.0-OpenSSH_9.2", "[]", "{}", R"({"QMP": {}})", R"({"QMP": {"version": 7}})"}) {
    auto made = make_socket_pair();
    ASSERT_OK(made);
    ASSERT_OK(os::write_all(made->theirs, std::string(wrong) + "\n"));
    made->theirs.reset();
    const auto qmp = Qmp::open(std::move(made->ours), hang);
    ASSERT_FALSE(qmp) << wrong;
    EXPECT_TRUE(qmp.error().code == Errc::corrupt || qmp.error().code == Errc::application) << wrong << ": " << qmp.error().text();
  }
}

class HostileQmpTest : public QmpTest, public ::testing::WithParamInterface<std::string> {};

TEST_P(HostileQmpTest, IsRefusedForGood) {
  play(std::string(greeting), {ok(), GetParam()});
  auto qmp = open();
  ASSERT_OK(qmp);
  EXPECT_EQ(qmp->execute("query-status", "{}", hang).error().code, Errc::corrupt);
  EXPECT_EQ(qmp->execute("query-status", "{}", hang).error().code, Errc::corrupt);
}

INSTANTIATE_TEST_SUITE_P(Answers, HostileQmpTest,
                         ::testing::Values(std::string("\x00\xff", 2), "{\"return\": ", "[1,2]", "7", "{\"id\": ID}"));

TEST_F(QmpTest, ALineWithoutEndIsBounded) {
  qemu_ = std::thread([this] {
    (void)os::write_all(theirs_, std::string(greeting) + "\n");
    const std::string much(1 << 20, 'x');
    while (::send(theirs_.get(), much.data(), much.size(), MSG_NOSIGNAL) > 0) {}
  });
  const auto qmp = open();
  ASSERT_FALSE(qmp);
  EXPECT_EQ(qmp.error().code, Errc::corrupt) << qmp.error().text();
}

TEST_F(QmpTest, EventsNobodyTakesAreBoundedAndTheNewestStay) {
  std::string events;
  for (int i = 0; i < 5000; ++i) events += fmt::format(R"({{"event": "E{}"}})" "\n", i);
  play(std::string(greeting), {ok(), events + ok()});
  auto qmp = open();
  ASSERT_OK(qmp);
  ASSERT_OK(qmp->execute("many", "{}", hang));
  std::size_t count = 0;
  std::string last;
  for (;;) {
    const auto event = qmp->next_event(0ns);
    if (!event || !*event) break;
    ++count;
    last = (*event)->name;
  }
  EXPECT_LT(count, 5000U);
  EXPECT_EQ(last, "E4999");
}

TEST_F(QmpTest, ArgumentsThatAreNoObjectAreTheCallersFault) {
  play(std::string(greeting), {ok()});
  auto qmp = open();
  ASSERT_OK(qmp);
  EXPECT_EQ(qmp->execute("x", "[]", hang).error().code, Errc::invalid_argument);
  EXPECT_EQ(qmp->execute("x", "{", hang).error().code, Errc::invalid_argument);
}

TEST_F(QmpTest, ADescriptorGoesAlong) {
  auto pipe = os::make_pipe();
  ASSERT_OK(pipe);
  bool passed = false;
  qemu_ = std::thread([&] {
    (void)os::write_all(theirs_, std::string(greeting) + "\n");
    (void)read_line();
    (void)os::write_all(theirs_, R"({"return": {}, "id": 1})" "\n");
    char text[4096];
    iovec part{text, sizeof text};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(theirs_.get(), &message, MSG_CMSG_CLOEXEC) > 0)
      if (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr && header->cmsg_type == SCM_RIGHTS) {
        int got = -1;
        std::memcpy(&got, CMSG_DATA(header), sizeof got);
        passed = os::write_all(os::Fd(got), "x").has_value();
      }
    (void)os::write_all(theirs_, R"({"return": {}, "id": 2})" "\n");
  });
  auto qmp = open();
  ASSERT_OK(qmp);
  ASSERT_OK(qmp->execute("getfd", R"({"fdname": "f"})", hang, pipe->write.get()));
  qemu_.join();
  EXPECT_TRUE(passed);
  EXPECT_TRUE(os::readable_within(pipe->read.get(), hang).value_or(false));
}

}  // namespace
}  // namespace yado::vm
