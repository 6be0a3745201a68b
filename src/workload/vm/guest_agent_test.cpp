#include "workload/vm/guest_agent.hpp"

#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/testing.hpp"
#include "workload/vm/sockets.hpp"

namespace yado::vm {
namespace {

using nlohmann::json;


constexpr nanoseconds hang = 60s;
constexpr nanoseconds soon = 20ms;  ///< for answers that never come

/// The guest's side, which answers each line by `answer` (none: nothing), until we close ours.
class FakeAgent {
 public:
  using Answer = std::function<std::optional<std::string>(const json& asked)>;
  explicit FakeAgent(Answer answer) : answer_(std::move(answer)) {
    auto pair = make_socket_pair();
    ours_ = std::move(pair->ours);
    theirs_ = std::move(pair->theirs);
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeAgent() {
    ::shutdown(theirs_.get(), SHUT_RDWR);
    thread_.join();
  }
  os::Fd socket() { return std::move(ours_); }
  /// As qemu-guest-agent does it.
  static std::optional<std::string> synchronized(const json& asked) {
    if (asked.value("execute", "") != "guest-sync-delimited") return std::nullopt;
    return "\xff" + json{{"return", asked["arguments"]["id"]}}.dump() + "\n";
  }

 private:
  void serve() {
    std::string text;
    char chunk[4096];
    for (ssize_t n; (n = ::read(theirs_.get(), chunk, sizeof chunk)) > 0;) {
      text.append(chunk, static_cast<std::size_t>(n));
      for (std::size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
        std::string line = text.substr(0, end);
        if (const std::size_t cut = line.rfind('\xff'); cut != std::string::npos) line.erase(0, cut + 1);
        const json asked = json::parse(line, nullptr, false);
        if (const auto answer = answer_(asked)) (void)!::send(theirs_.get(), answer->data(), answer->size(), MSG_NOSIGNAL);
      }
    }
  }

  Answer answer_;
  os::Fd ours_, theirs_;
  std::thread thread_;
};

TEST(GuestAgentTest, WhatTheClientBeforeHadAskedIsPassedOver) {
  FakeAgent fake([](const json& asked) -> std::optional<std::string> {
    if (const auto synchronized = FakeAgent::synchronized(asked)) return "{\"return\": 7}\nhalf a li" + *synchronized;
    return "{\"return\": 42}\n";
  });
  auto agent = GuestAgent::open(fake.socket(), hang);
  ASSERT_OK(agent);
  EXPECT_EQ(agent->time(hang).value_or(0), 42);
}

TEST(GuestAgentTest, AnotherClientsSynchronizationIsNotOurs) {
  FakeAgent fake([](const json& asked) -> std::optional<std::string> {
    return "\xff{\"return\": 1}\n" + FakeAgent::synchronized(asked).value_or("");
  });
  auto agent = GuestAgent::open(fake.socket(), hang);
  ASSERT_OK(agent);
  EXPECT_EQ(agent->execute("guest-ping", "{}", hang).value_or("?"), "1") << "the next line, whoever it is for: the stream is in step";
}

TEST(GuestAgentTest, SilenceIsAbsenceAndNoHang) {
  FakeAgent fake([](const json&) { return std::nullopt; });
  const auto agent = GuestAgent::open(fake.socket(), soon);
  ASSERT_FALSE(agent);
  EXPECT_EQ(agent.error().code, Errc::unavailable) << agent.error().text();
  EXPECT_NE(agent.error().message.find("qemu-guest-agent"), std::string::npos);
}

TEST(GuestAgentTest, ALateAnswerIsNeverTakenForAnother) {
  bool owes = true;
  FakeAgent fake([&](const json& asked) -> std::optional<std::string> {
    if (asked.value("execute", "") == "guest-get-time" && std::exchange(owes, false)) return std::nullopt;
    if (const auto synchronized = FakeAgent::synchronized(asked)) return "{\"return\": 1}\n" + *synchronized;
    return "{\"return\": 2}\n";
  });
  auto agent = GuestAgent::open(fake.socket(), hang);
  ASSERT_OK(agent);
  EXPECT_EQ(agent->time(soon).error().code, Errc::unavailable);
  EXPECT_EQ(agent->time(hang).error().code, Errc::unavailable) << "nothing may be asked while an answer is owed";
  ASSERT_OK(agent->synchronize(hang));
  EXPECT_EQ(agent->time(hang).value_or(0), 2);
}

TEST(GuestAgentTest, ErrorsAreTheAgentsWords) {
  FakeAgent fake([](const json& asked) -> std::optional<std::string> {
    if (const auto synchronized = FakeAgent::synchronized(asked)) return synchronized;
    if (asked.value("execute", "") == "guest-get-time") return "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such command\"}}\n";
    if (asked.value("execute", "") == "guest-set-time") return "{\"error\": {\"class\": \"GenericError\", \"desc\": \"hwclock failed\"}}\n";
    if (asked.value("execute", "") == "guest-fsfreeze-freeze") return "{\"error\": 5}\n";
    return "nonsense\n";
  });
  auto agent = GuestAgent::open(fake.socket(), hang);
  ASSERT_OK(agent);
  EXPECT_EQ(agent->time(hang).error().code, Errc::unsupported);
  const auto set = agent->set_time(1, hang);
  ASSERT_FALSE(set);
  EXPECT_NE(set.error().message.find("hwclock failed"), std::string::npos);
  EXPECT_EQ(agent->freeze_disks(hang).error().code, Errc::io);
  EXPECT_EQ(agent->thaw_disks(hang).error().code, Errc::corrupt);
}

TEST(GuestAgentTest, TheEndOfQemuIsSaid) {
  auto pair = make_socket_pair();
  ASSERT_OK(pair);
  pair->theirs.reset();
  EXPECT_EQ(GuestAgent::open(std::move(pair->ours), hang).error().code, Errc::application);
}

// ---- programs ----

struct Guest {
  explicit Guest(std::string end) : last(std::move(end)) {}
  int asked = 0;
  std::vector<nanoseconds> waits;
  std::string last;  ///< what guest-exec-status says once it has ended
  std::vector<std::unique_ptr<FakeAgent>> agents;

  Result<GuestRun> run() {
    const auto connect = [&] {
      agents.push_back(std::make_unique<FakeAgent>([&](const json& asked_now) -> std::optional<std::string> {
        if (const auto synchronized = FakeAgent::synchronized(asked_now)) return synchronized;
        if (asked_now.value("execute", "") == "guest-exec") return "{\"return\": {\"pid\": 77}}\n";
        EXPECT_EQ(asked_now["arguments"]["pid"], 77);
        return ++asked < 3 ? "{\"return\": {\"exited\": false}}\n" : last + "\n";
      }));
      return GuestAgent::open(agents.back()->socket(), hang);
    };
    return run_in_guest(connect, [&](nanoseconds time) -> Status { waits.push_back(time); return {}; }, {"/bin/true"}, hang);
  }
};

TEST(GuestAgentTest, AProgramsOutputAndStatusComeBack) {
  Guest guest(R"({"return": {"exited": true, "exitcode": 3, "out-data": "b3V0", "err-data": "ZXJy"}})");
  const auto run = guest.run();
  ASSERT_OK(run);
  EXPECT_EQ(run->status, (os::ExitStatus{3, 0}));
  EXPECT_EQ(run->output, "outerr");
  EXPECT_EQ(guest.waits.size(), 3U);
  EXPECT_EQ(guest.agents.size(), 4U) << "others get at the agent between two questions";
}

TEST(GuestAgentTest, AProgramThatASignalEndedSaysSo) {
  Guest guest(R"({"return": {"exited": true, "signal": 9}})");
  const auto run = guest.run();
  ASSERT_OK(run);
  EXPECT_EQ(run->status, (os::ExitStatus{0, 9}));
}

TEST(GuestAgentTest, OutputThatIsNoBase64IsRefused) {
  Guest guest(R"({"return": {"exited": true, "exitcode": 0, "out-data": "?"}})");
  EXPECT_EQ(guest.run().error().code, Errc::corrupt);
}

}  // namespace
}  // namespace yado::vm
