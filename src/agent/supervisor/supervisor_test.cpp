#include "agent/supervisor/supervisor.hpp"

#include <csignal>
#include <fstream>
#include <thread>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "agent/supervisor/client.hpp"
#include "agent/supervisor/log_file.hpp"
#include "agent/supervisor/socket.hpp"
#include "agent/supervisor/spawn.hpp"
#include "base/testing.hpp"
#include "os/cgroup.hpp"
#include "workload/container/testing.hpp"

namespace yado::supervisor {
namespace {

namespace fs = std::filesystem;
namespace asio = boost::asio;
using container::testing::counter;
using container::testing::hang;
using container::testing::python;
using nlohmann::json;


/// One blocking connection, as an agent would have it.
class Connection {
 public:
  static Result<Connection> open(const fs::path& directory) {
    YADO_ASSIGN(os::Fd socket, connect_to(socket_of(directory)), "test");
    Connection made;
    made.socket_ = std::move(socket);
    return made;
  }
  void send(const std::string& what, json fields = json::object()) {
    fields["do"] = what;
    fields["id"] = ++id_;
    (void)send_packet(socket_, fields.dump());
  }
  /// The next packet that has `key`; the others are kept. Null: none came, or the connection ended.
  json next(const std::string& key, nanoseconds limit = hang) {
    for (auto it = kept_.begin(); it != kept_.end(); ++it)
      if (it->contains(key)) {
        json found = *it;
        kept_.erase(it);
        return found;
      }
    const Instant deadline = os::now() + limit;
    for (;;) {
      const auto ready = os::readable_within(socket_.get(), deadline - os::now());
      if (!ready || !*ready) return nullptr;
      const auto packet = receive_packet(socket_);
      if (!packet || !*packet) return nullptr;
      json message = json::parse(**packet);
      if (message.contains(key)) return message;
      kept_.push_back(std::move(message));
    }
  }
  json call(const std::string& what, json fields = json::object()) {
    send(what, std::move(fields));
    return answer(id_);
  }
  json answer(int id) {
    for (;;) {
      json message = next("id");
      if (message.is_null() || message["id"] == id) return message;
    }
  }
  int last_id() const { return id_; }
  json event(const std::string& name, nanoseconds limit = hang) {
    const Instant deadline = os::now() + limit;
    for (;;) {
      json message = next("event", deadline - os::now());
      if (message.is_null() || message["event"] == name) return message;
    }
  }

 private:
  os::Fd socket_;
  int id_ = 0;
  std::vector<json> kept_;
};

class SupervisorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = container::testing::why_not(); !reason.empty()) GTEST_SKIP() << reason;
    auto ground = container::testing::Ground::make();
    ASSERT_OK(ground);
    ground_.emplace(std::move(*ground));
  }
  void TearDown() override {
    // Whatever a failed test left: a supervisor that is killed takes everything with it.
    for (const pid_t pid : supervisors_) {
      const auto left = os::Pidfd::open(pid);
      if (left && left->send(SIGKILL)) (void)left->ended_within(hang);
    }
    for (const std::string& name : names_) EXPECT_TRUE(group_goes(name)) << name;
  }

  Config config(const std::string& name, const ContainerSpec& spec) {
    Config made;
    made.instance = InstanceId(name);
    made.spec.name = WorkloadId("site");
    made.spec.container = spec;
    made.spec.service.port = 8000;
    made.epoch = Epoch::make(5, 0);
    made.directory = ground_->directory() / name;
    made.root = "/";
    made.cgroup = ground_->cgroup(name);
    const container::Criu criu = container::testing::find_criu(ground_->directory());
    made.criu = criu.binary;
    made.criu_cache = criu.kernel_cache;
    fs::create_directories(made.directory);
    return made;
  }
  /// Started and connected.
  Result<Connection> launch(const Config& config) {
    names_.push_back(config.instance.str());
    YADO_ASSIGN(os::Netns network, container::testing::make_network(), "test");
    YADO_TRY(spawn_forked(config, network.fd().get(), [&](os::Fd net, os::Fd ready) {
      return run(config, std::move(net), std::move(ready));
    }), "test");
    YADO_ASSIGN(Connection connection, Connection::open(config.directory), "test");
    supervisors_.push_back(static_cast<pid_t>(connection.call("describe")["supervisor_pid"].get<int>()));
    return connection;
  }
  /// The janitor needs a moment; the kernel says when the group's processes are gone, but not when its directory is.
  bool group_goes(const std::string& name) {
    const Instant deadline = os::now() + hang;
    while (os::Cgroup::open(ground_->cgroup(name))) {
      if (os::now() > deadline) return false;
      std::this_thread::sleep_for(5ms);
    }
    return true;
  }
  static std::string log_of_instance(Connection& connection) { return connection.call("log")["log"]; }

  std::optional<container::testing::Ground> ground_;
  std::vector<pid_t> supervisors_;
  std::vector<std::string> names_;
};

TEST_F(SupervisorTest, AProgramThatIsMissingIsTheAnswerToStart) {
  ContainerSpec spec;
  spec.command = {"no-such-program"};
  auto connection = launch(config("a", spec));
  ASSERT_OK(connection);
  const json answer = connection->call("start");
  EXPECT_EQ(answer["error"]["code"], "not-found") << answer;
}

TEST_F(SupervisorTest, ADirectoryThatIsMissingIsAnErrorOfTheSpawn) {
  Config missing = config("a", counter());
  fs::remove_all(missing.directory);
  const auto spawned = launch(missing);
  ASSERT_FALSE(spawned);
  EXPECT_EQ(spawned.error().code, Errc::not_found) << spawned.error().text();
}

TEST_F(SupervisorTest, AnOldEpochIsRefusedInEveryCall) {
  auto connection = launch(config("a", counter()));
  ASSERT_OK(connection);
  for (const char* what : {"start", "freeze", "thaw", "stop", "promote", "exec"}) {
    const json answer = connection->call(what, {{"epoch", Epoch::make(4, 0).value()}});
    EXPECT_EQ(answer["error"]["code"], "stale-epoch") << what << answer;
  }
  EXPECT_TRUE(connection->call("start", {{"epoch", Epoch::make(5, 0).value()}}).contains("ok"));
}

TEST_F(SupervisorTest, NonsenseIsAnsweredAndDoesNoHarm) {
  auto connection = launch(config("a", counter()));
  ASSERT_OK(connection);
  EXPECT_EQ(connection->call("no-such-call")["error"]["code"], "invalid-argument");
  EXPECT_EQ(connection->call("freeze")["error"]["code"], "conflict");
  EXPECT_TRUE(connection->call("start").contains("ok"));
  EXPECT_EQ(connection->call("exec", {{"command", 7}})["error"]["code"], "invalid-argument");
  EXPECT_EQ(connection->call("describe")["state"], "running");
}

TEST_F(SupervisorTest, TheEndOfTheProgramIsToldWithItsLastWords) {
  auto connection = launch(config("a", python("print('last words'); raise SystemExit(4)")));
  ASSERT_OK(connection);
  connection->call("start");
  const json exited = connection->event("exited");
  EXPECT_EQ(exited["code"], 4) << exited;
  EXPECT_NE(exited["log"].get<std::string>().find("last words"), std::string::npos);
  EXPECT_EQ(connection->call("describe")["state"], "exited");
  EXPECT_EQ(connection->call("stop")["code"], 4);
}

TEST_F(SupervisorTest, AProgramThatClosesItsOutputDoesNotKeepTheSupervisorBusy) {
  auto connection = launch(config("a", python("import os,time\nos.close(1); os.close(2)\nwhile True: time.sleep(1)")));
  ASSERT_OK(connection);
  connection->call("start");
  const auto cpu_ticks = [&] {
    std::ifstream file(fmt::format("/proc/{}/stat", supervisors_.back()));
    std::string word;
    long user = 0, system = 0;
    for (int i = 0; i < 13; ++i) file >> word;
    file >> user >> system;
    return user + system;
  };
  std::this_thread::sleep_for(100ms);
  const long before = cpu_ticks();
  std::this_thread::sleep_for(500ms);
  // A loop that never sleeps would use 50 ticks of 10 ms on an idle machine, and its share on a busy one.
  EXPECT_LE(cpu_ticks() - before, 2);
}

TEST_F(SupervisorTest, ExecAnswersWithStatusAndBoundedOutput) {
  auto connection = launch(config("a", counter()));
  ASSERT_OK(connection);
  connection->call("start");
  const json done = connection->call("exec", {{"command", {"/usr/bin/python3", "-c", "print('x'*100000); raise SystemExit(6)"}}});
  EXPECT_EQ(done["code"], 6) << done["error"];
  EXPECT_EQ(done["output"].get<std::string>().size(), exec_output_bytes);
  EXPECT_TRUE(done["truncated"].get<bool>());
}

TEST_F(SupervisorTest, AnAgentThatComesBackFindsTheInstanceAsItLeftIt) {
  const Config wanted = config("a", counter());
  {
    auto first = launch(wanted);
    ASSERT_OK(first);
    first->call("start", {{"epoch", wanted.epoch.value()}});
  }  // the agent is gone
  auto second = Connection::open(wanted.directory);
  ASSERT_OK(second);
  const json found = second->call("describe");
  EXPECT_EQ(found["state"], "running") << found;
  EXPECT_EQ(found["how"], "started");
  EXPECT_EQ(found["epoch"], wanted.epoch.value());
  EXPECT_TRUE(second->call("stop", {{"grace_ms", 0}}).contains("ok"));
  EXPECT_TRUE(group_goes("a"));
  EXPECT_FALSE(fs::exists(socket_of(wanted.directory)));
}

TEST_F(SupervisorTest, KilledItLeavesNothing) {
  for (const bool frozen : {false, true}) {
    const std::string name = frozen ? "frozen" : "running";
    const Config wanted = config(name, python("import os,time\nos.fork()\nwhile True: time.sleep(1)"));
    auto connection = launch(wanted);
    ASSERT_OK(connection);
    connection->call("start");
    if (frozen) connection->call("freeze");
    const auto first = os::Pidfd::open(connection->call("describe")["pid"].get<int>());
    ASSERT_OK(first);
    ::kill(supervisors_.back(), SIGKILL);
    EXPECT_TRUE(first->ended_within(hang).value_or(false)) << name;
    EXPECT_TRUE(group_goes(name));
  }
}

TEST_F(SupervisorTest, AnExclusiveOwnerRunsOnlyAfterTheLeaseAndIsFrozenWhenItEnds) {
  Config wanted = config("a", counter());
  wanted.spec.policy.consistency = Consistency::exclusive;
  wanted.spec.policy.lease = 300ms;
  auto connection = launch(wanted);
  ASSERT_OK(connection);
  connection->send("start", {{"epoch", wanted.epoch.value()}});
  const int start = connection->last_id();
  const json asked = connection->event("renew");
  ASSERT_FALSE(asked.is_null());
  {
    auto other = Connection::open(wanted.directory);
    ASSERT_OK(other);
    EXPECT_EQ(other->call("describe")["pid"], 0) << "it was started without a lease";
  }
  connection->send("renewed", {{"ticket", asked["ticket"]}, {"ttl_ms", 300}});
  EXPECT_TRUE(connection->answer(start).contains("ok"));
  // Nobody renews: the supervisor freezes it by itself.
  const json over = connection->event("lease-over");
  ASSERT_FALSE(over.is_null());
  EXPECT_EQ(connection->call("describe")["state"], "frozen");
  // A late renewal lets it go on.
  const json again = connection->event("renew");
  ASSERT_FALSE(again.is_null());
  connection->send("renewed", {{"ticket", again["ticket"]}, {"ttl_ms", 60'000}});
  json state;
  do state = connection->event("state");
  while (!state.is_null() && state["state"] != "running");
  EXPECT_FALSE(state.is_null());
}

TEST_F(SupervisorTest, WithoutAnyAgentTheLeaseEndsAllTheSame) {
  Config wanted = config("a", counter());
  wanted.spec.policy.consistency = Consistency::exclusive;
  wanted.spec.policy.lease = 200ms;
  {
    auto connection = launch(wanted);
    ASSERT_OK(connection);
    connection->send("start");
    const json asked = connection->event("renew");
    connection->send("renewed", {{"ticket", asked["ticket"]}, {"ttl_ms", 200}});
    json state;
    do state = connection->event("state");
    while (!state.is_null() && state["state"] != "running");
    ASSERT_FALSE(state.is_null());
  }
  const auto group = os::Cgroup::open(ground_->cgroup("a"));
  ASSERT_OK(group);
  const Instant deadline = os::now() + hang;
  while (!group->frozen().value_or(false) && os::now() < deadline) std::this_thread::sleep_for(5ms);
  EXPECT_TRUE(group->frozen().value_or(false));
}

TEST_F(SupervisorTest, AStandbyBecomesTheOwnerUnderANewEpoch) {
  Config standby = config("a", counter());
  standby.purpose = Purpose::standby;
  auto connection = launch(standby);
  ASSERT_OK(connection);
  connection->call("start");
  connection->call("freeze");
  const Epoch next = standby.epoch.next();
  EXPECT_TRUE(connection->call("promote", {{"epoch", next.value()}, {"thaw", true}}).contains("ok"));
  const json found = connection->call("describe");
  EXPECT_EQ(found["state"], "running") << found;
  EXPECT_EQ(found["purpose"], "owner");
  EXPECT_EQ(connection->call("freeze", {{"epoch", standby.epoch.value()}})["error"]["code"], "stale-epoch");
}

TEST_F(SupervisorTest, CheckpointThenRestoreUnderAnotherSupervisorAndTheLogGoesOn) {
  const Config builder = config("a", counter());
  if (builder.criu.empty()) GTEST_SKIP() << "needs a working CRIU named by YADO_CRIU: run tools/install-criu";
  auto first = launch(builder);
  ASSERT_OK(first);
  first->call("start");
  const std::string criu = ground_->directory() / "image/criu", disk = ground_->directory() / "image/disk";
  fs::create_directories(criu);
  fs::create_directories(disk);
  const json parts{{"criu", criu}, {"disk", disk}};
  const json taken = first->call("checkpoint", {{"parts", parts}, {"leave_running", false}});
  ASSERT_TRUE(taken.contains("properties")) << taken;
  EXPECT_EQ(first->event("exited")["signal"], SIGKILL);
  first->call("stop");

  Config standby = config("b", counter());
  standby.purpose = Purpose::standby;
  auto second = launch(standby);
  ASSERT_OK(second);
  const json restored = second->call("restore", {{"parts", parts}, {"properties", taken["properties"]}, {"frozen", true}});
  ASSERT_TRUE(restored.contains("ok")) << restored;
  EXPECT_EQ(second->call("describe")["state"], "frozen");
  EXPECT_EQ(log_of_instance(*second), "");
  EXPECT_TRUE(second->call("thaw").contains("ok"));
  const Instant deadline = os::now() + hang;
  while (log_of_instance(*second).find("count") == std::string::npos && os::now() < deadline) std::this_thread::sleep_for(5ms);
  EXPECT_NE(log_of_instance(*second).find("count"), std::string::npos);

  // Restored processes die with their supervisor as started ones do.
  const auto process = os::Pidfd::open(second->call("describe")["pid"].get<int>());
  ASSERT_OK(process);
  ::kill(supervisors_.back(), SIGKILL);
  EXPECT_TRUE(process->ended_within(hang).value_or(false));
}

/// As an agent does that was killed while a checkpoint was taken, and started anew.
TEST_F(SupervisorTest, ACheckpointWaitsForWhatIsUnderWay) {
  const Config of_owner = config("a", counter());
  if (of_owner.criu.empty()) GTEST_SKIP() << "needs a working CRIU named by YADO_CRIU: run tools/install-criu";
  auto first = launch(of_owner);
  ASSERT_OK(first);
  first->call("start");
  const auto parts = [&](const std::string& image) {
    const fs::path directory = ground_->directory() / image;
    for (const char* part : {"criu", "disk"}) fs::create_directories(directory / part);
    return json{{"criu", (directory / "criu").native()}, {"disk", (directory / "disk").native()}};
  };
  first->send("checkpoint", {{"parts", parts("one")}});
  auto anew = Connection::open(of_owner.directory);
  ASSERT_OK(anew);
  anew->send("checkpoint", {{"parts", parts("two")}});
  {
    auto gone = Connection::open(of_owner.directory);
    ASSERT_OK(gone);
    gone->send("checkpoint", {{"parts", parts("of-nobody")}});
  }
  const json taken = anew->answer(anew->last_id());
  EXPECT_TRUE(taken.contains("properties")) << taken;
  EXPECT_TRUE(first->answer(first->last_id()).contains("properties"));
  EXPECT_TRUE(anew->call("checkpoint", {{"parts", parts("three")}}).contains("properties"));
  EXPECT_TRUE(fs::is_empty(ground_->directory() / "of-nobody/criu")) << "nobody waits for it";
  EXPECT_EQ(anew->call("describe")["state"], "running");

  anew->send("checkpoint", {{"parts", parts("four")}});
  first->send("checkpoint", {{"parts", parts("five")}});
  const json stopped = Connection::open(of_owner.directory)->call("stop", {{"grace_ms", 0}});
  EXPECT_TRUE(stopped.contains("ok")) << stopped;
}

TEST_F(SupervisorTest, ThePlainClientOfTheAgentSpeaksTheSame) {
  const Config wanted = config("a", python("import socket,time\ns=socket.socket(); s.bind(('10.87.0.2',8000)); s.listen()\ntime.sleep(1000)"));
  ASSERT_OK(launch(wanted));
  asio::io_context io;
  std::vector<InstanceState> seen;
  bool closed = false;
  Events events;
  events.state = [&](InstanceState state) { seen.push_back(state); };
  events.closed = [&] { closed = true; };
  auto client = Client::connect(io, wanted.directory, std::move(events));
  ASSERT_OK(client);
  const auto talk = [&]() -> asio::awaitable<void> {
    const Epoch epoch = wanted.epoch, old = Epoch::make(1, 0);
    EXPECT_TRUE((co_await client->start(epoch)).has_value());
    const auto times = co_await client->wait_startup(30'000ms);
    EXPECT_TRUE(times.has_value() && times->settled > 0ns);
    const auto refused = co_await client->freeze(old);
    EXPECT_EQ(refused.error().code, Errc::stale_epoch);
    EXPECT_TRUE((co_await client->freeze(epoch)).has_value());
    EXPECT_TRUE((co_await client->thaw(epoch)).has_value());
    const auto found = co_await client->describe();
    EXPECT_TRUE(found.has_value() && found->state == InstanceState::running && found->pid > 0);
    std::vector<std::string> command = {"/usr/bin/python3", "-c", "print('inside')"};
    const auto done = co_await client->exec(epoch, std::move(command));
    EXPECT_TRUE(done.has_value() && done->output == "inside\n");
    EXPECT_TRUE((co_await client->stats()).has_value());
    EXPECT_TRUE((co_await client->stop(epoch, 0ms)).has_value());
  };
  asio::co_spawn(io, talk, asio::detached);
  io.run();
  EXPECT_TRUE(closed);
  EXPECT_EQ(seen, (std::vector{InstanceState::running, InstanceState::frozen, InstanceState::running, InstanceState::exited}));
}

// ---- without root ----

TEST(SupervisorConfigTest, GoesThroughTextUnchanged) {
  Config config;
  config.instance = InstanceId("site.4");
  config.spec.name = WorkloadId("site");
  config.spec.container.command = {"true"};
  config.epoch = Epoch::make(7, 1);
  config.purpose = Purpose::standby;
  config.directory = "/d";
  config.root = "/r";
  config.cgroup = "yado/site.4";
  config.id_base = 200'000;
  const auto again = config_from_text(to_text(config));
  ASSERT_OK(again);
  EXPECT_EQ(to_text(*again), to_text(config));
  EXPECT_FALSE(config_from_text("{}"));
}

TEST(LogFileTest, IsBoundedRotatesOnceAndKeepsItsEnd) {
  char name[] = "/tmp/yado-test-XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const fs::path directory = name;
  auto log = LogFile::open(directory / "log", 1000);
  ASSERT_OK(log);
  for (int i = 0; i < 500; ++i) log->append(fmt::format("line {}\n", i));
  EXPECT_LE(fs::file_size(directory / "log"), 1000u);
  EXPECT_LE(fs::file_size(directory / "log.1"), 1000u);
  EXPECT_TRUE(log->tail(100).starts_with("line "));
  EXPECT_TRUE(log->tail(100).ends_with("line 499\n"));
  fs::remove_all(directory);
}

}  // namespace
}  // namespace yado::supervisor
