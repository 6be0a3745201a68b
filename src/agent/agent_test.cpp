// The agent with real supervisors and containers, in a network namespace of its own, under a control that is ours.

#include "agent/agent.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <boost/asio/co_spawn.hpp>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "agent/host_facts.hpp"
#include "agent/state_directory.hpp"
#include "agent/supervisor/spawn.hpp"
#include "agent/supervisor/supervisor.hpp"
#include "api/calls.hpp"
#include "base/testing.hpp"
#include "image/store.hpp"
#include "net/rtnl.hpp"
#include "os/cgroup.hpp"
#include "os/process.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"
#include "wire/server.hpp"
#include "workload/container/testing.hpp"

namespace yado::agent {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using container::testing::hang;
using ::testing::HasSubstr;

const std::string address = "10.1.0.1";
const WorkloadId site("site");


/// Not a test: the program that the agents below start as supervisors is this binary with this filter.
TEST(AgentTestSupervisor, DISABLED_Run) {
  const std::string command = os::read_text("/proc/self/cmdline").value_or("");
  if (!command.ends_with(std::string("supervisor\0", 11))) GTEST_SKIP() << "a helper of AgentTest";
  ::_exit(supervisor::run_spawned());
}

/// A root file system of perl and nothing else, and a server in it that counts its requests.
Status make_root(const fs::path& root) {
  os::Spawn copy;
  copy.arguments = {"/bin/sh", "-ec",
                    "mkdir -p $1/tmp $1/proc $1/dev $1/sys $1/etc; for f in /usr/bin/perl $(ldd /usr/bin/perl | grep "
                    "-o '/[^ ]*'); do "
                    "mkdir -p $1$(dirname $f); cp -L $f $1$f; done",
                    "sh", root.native()};
  copy.environment = {"PATH=/usr/bin:/bin"};
  YADO_ASSIGN(os::Process process, os::spawn(copy), "root");
  YADO_ASSIGN(const auto ended, process.wait(hang), "root");
  if (!ended || !ended->success()) return fail(Errc::internal, "the root file system could not be made");
  std::ofstream(root / "server.pl") << R"(
    $| = 1; print "starting $ARGV[0]\n"; exit 3 if $ARGV[0] eq 'exit'; if ($ARGV[0] eq 'deaf') { print "no database\n"; }
    socket(S, 2, 1, 6) or die; setsockopt(S, 1, 2, pack('l', 1)); bind(S, pack('S n a4 x8', 2, 8000, "\0" x 4)) or die; listen(S, 64);
    my $n = 0; my $ok = $ARGV[0] eq 'deaf' ? '503 No' : '200 OK';
    while (accept(C, S)) { my $r = ''; sysread(C, $r, 4096); ++$n; my $b = "answer $n";
      syswrite(C, "HTTP/1.1 $ok\r\ncontent-length: " . length($b) . "\r\nconnection: close\r\n\r\n$b"); close(C); }
  )";
  return {};
}

WorkloadSpec spec_of(const fs::path& root, const std::string& behaviour = "serve") {
  WorkloadSpec spec;
  spec.name = site;
  spec.container.root = root;
  spec.container.command = {"/usr/bin/perl", "/server.pl", behaviour};
  spec.service.hosts = {"site.example"};
  spec.service.port = 8000;
  spec.service.ready = Readiness{.path = "/", .status = 200, .contains = "answer", .start_limit = 20s};
  return spec;
}

/// A host with an agent, and a control that hears its heart-beats.
struct Host {
  asio::io_context io;
  fs::path directory;
  Config config;
  wire::Identity control_identity;
  std::unique_ptr<wire::Server> control;
  std::vector<HostReport> reports;
  std::vector<std::string> exits;
  std::uint64_t renewals = 0;
  bool answers_renewals = true;
  nlohmann::json retire = nlohmann::json::array();
  std::unique_ptr<Agent> agent;
  std::optional<Status> ended;
  std::uint16_t port = 0;

  asio::awaitable<void> hear(const wire::Request& request, wire::Responder& responder) {
    wire::Response response{.status = 200, .headers = {}, .body = "{}"};
    if (request.target.ends_with("/heartbeat")) {
      if (auto report = api::parse<HostReport>(request.body)) reports.push_back(std::move(*report));
      response.body = api::dump({{"retire", std::exchange(retire, nlohmann::json::array())},
                                 {"drop", nlohmann::json::array()},
                                 {"heartbeat_ms", 20}});
    } else if (request.target.ends_with("/exited")) {
      exits.push_back(request.body);
    } else if (request.target == "/v1/leases/renew") {
      ++renewals;
      if (answers_renewals)
        response.body = R"({"ttl_ms": 1000})";
      else
        response = {.status = 409, .headers = {}, .body = R"({"error":{"code":"stale-epoch","message":"over"}})"};
    }
    (void)co_await responder.respond(std::move(response));
  }

  Status set_up(const container::testing::Ground& ground) {
    directory = ground.directory();
    YADO_TRY(make_root(directory / "root"), "test");
    YADO_ASSIGN(const wire::Authority authority, wire::Authority::open_or_create(directory / "ca"), "test");
    YADO_ASSIGN(const wire::Identity own, authority.issue("agent:h1"), "test");
    YADO_TRY(own.save(directory / "identity"), "test");
    YADO_ASSIGN(control_identity, authority.issue("control:c1"), "test");
    control = std::make_unique<wire::Server>(
        io, [this](const wire::Request& request, wire::Responder& responder) { return hear(request, responder); },
        wire::Server::Limits{});
    YADO_ASSIGN(const std::uint16_t control_port, control->listen_tls(address, 0, control_identity), "test");
    config.host = HostId("h1");
    config.address = address;
    config.control = {address, control_port};
    config.identity = directory / "identity";
    config.state_directory = directory / "state";
    config.cgroup = ground.cgroup("agent");
    config.criu = container::testing::find_criu(directory).binary;
    config.supervisor = {fs::read_symlink("/proc/self/exe").native(), "--gtest_filter=AgentTestSupervisor.DISABLED_Run",
                         "--gtest_also_run_disabled_tests", "--gtest_brief=1", "supervisor"};
    return {};
  }

  /// Runs everything until `done`; false when it never came.
  bool until(const std::function<bool()>& done) {
    const Instant deadline = os::now() + hang;
    while (!done()) {
      if (os::now() > deadline) return false;
      io.restart();
      io.run_one_for(std::chrono::milliseconds(100));
    }
    return true;
  }

  Status start() {
    ended.reset();
    port = 0;
    agent = std::make_unique<Agent>(io, config);
    asio::co_spawn(io, agent->run([this](std::uint16_t bound) { port = bound; }),
                   [this](std::exception_ptr, Status status) { ended = std::move(status); });
    if (!until([&] { return port != 0 || ended; })) return fail(Errc::timed_out, "the agent does not come up");
    if (ended) return *ended;
    return {};
  }
  /// As a kill -9 of the agent would: its supervisors hear nothing of it.
  void kill_agent() {
    if (!agent) return;
    agent->stop();
    until([&] { return ended.has_value(); });
    agent.reset();
    // What was under way (a network being made) holds the directory until it is through; a real one dies with it.
    until([&] { return StateDirectory::open(config.state_directory).has_value(); });
  }

  Result<wire::Response> ask_agent(const std::string& method, const std::string& target, const std::string& body) {
    YADO_ASSIGN(wire::Client client, wire::Client::tls(io, address, port, control_identity, "agent:h1"), "test");
    wire::Request request;
    request.method = method;
    request.target = target;
    request.body = body;
    return wire::run(io, client.call(std::move(request), hang));
  }
  Result<CallReply> call(const AgentCall& what) {
    YADO_ASSIGN(const wire::Response response,
                ask_agent("POST", fmt::format("/v1/calls/{}", name_of(what)), api::dump(nlohmann::json(what))), "test");
    if (response.status == 200) return api::parse<CallReply>(response.body);
    YADO_ASSIGN(const auto json, api::parse_json(response.body), "test");
    YADO_ASSIGN(const Error error, api::from_json_value<Error>(json.at("error")), "test");
    return std::unexpected(error);
  }
  Result<CallReply> raise(const WorkloadSpec& spec, const std::string& instance, std::uint64_t counter,
                          std::optional<ImageId> image = {}) {
    return call(RaiseCall{spec, spec.name, InstanceId(instance), Epoch::make(counter, 0), std::move(image)});
  }
  /// What a client gets at the published port, as a gate on this host would ask.
  std::string get(const Endpoint& at) {
    wire::Client client = wire::Client::plain(io, at.address, at.port);
    wire::Request request;
    const auto response = wire::run(io, client.call(std::move(request), 5s));
    return response ? response->body : response.error().text();
  }
  const InstanceReport* reported(const std::string& instance) {
    if (reports.empty()) return nullptr;
    for (const InstanceReport& one : reports.back().instances)
      if (one.id.str() == instance) return &one;
    return nullptr;
  }
  bool directory_has(const std::string& instance) const {
    return fs::exists(config.state_directory / "instances" / instance);
  }
};

class AgentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = container::testing::why_not(); !reason.empty()) GTEST_SKIP() << reason;
    if (::access("/usr/bin/perl", X_OK) != 0) GTEST_SKIP() << "needs perl";
  }

  /// Runs the body on a thread inside a network namespace of its own; nothing is left afterwards, whatever it did.
  void on_a_host(const std::function<void(Host&)>& body) {
    auto ground = container::testing::Ground::make();
    ASSERT_OK(ground);
    auto netns = os::Netns::create();
    ASSERT_OK(netns);
    const Status ran = os::run_inside(*netns, [&] {
      auto links = net::Rtnl::open();
      ASSERT_OK(links);
      ASSERT_OK(links->set_up("lo"));
      ASSERT_OK(links->add_address("lo", {*net::Ipv4::parse(address), 32}));
      Host host;
      const Status up = host.set_up(*ground);
      ASSERT_OK(up);
      body(host);
      // What the body left: an agent of the state directory retires it.
      if (!host.agent) (void)host.start();
      std::set<std::string> left;
      for (const auto& entry : fs::directory_iterator(host.config.state_directory / "instances"))
        left.insert(entry.path().filename());
      for (const std::string& id : left) (void)host.call(StopCall{site, InstanceId(id), Epoch::make(1'000, 0)});
      EXPECT_TRUE(host.until([&] { return fs::is_empty(host.config.state_directory / "instances"); })) << "left behind";
      host.kill_agent();
      host.control->stop();
      host.io.restart();
      host.io.poll();
    });
    EXPECT_OK(ran);
    auto group = os::Cgroup::open(ground->cgroup("agent"));
    if (group) EXPECT_OK(group->remove());
  }
};

TEST_F(AgentTest, ACallOfAnOldEpochIsRefusedAlsoAfterARestart) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    ASSERT_OK(host.raise(spec_of(host.directory / "root"), "site.0", 7));
    ASSERT_OK(host.call(StopCall{site, InstanceId("site.0"), Epoch::make(7, 0)}));
    const auto stale = host.raise(spec_of(host.directory / "root"), "site.1", 6);
    ASSERT_FALSE(stale);
    EXPECT_EQ(stale.error().code, Errc::stale_epoch);
    host.kill_agent();
    ASSERT_OK(host.start());
    const auto again = host.raise(spec_of(host.directory / "root"), "site.1", 6);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, Errc::stale_epoch);
  });
}

TEST_F(AgentTest, AFenceThatCannotBeReadKeepsTheAgentFromStarting) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    host.kill_agent();
    std::ofstream(host.config.state_directory / "fences" / "site") << "7 or so";
    const Status refused = host.start();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::corrupt);
    EXPECT_THAT(refused.error().message, HasSubstr("site"));
    fs::remove(host.config.state_directory / "fences" / "site");
    host.agent.reset();
  });
}

TEST_F(AgentTest, ASecondAgentOnTheSameStateDirectoryIsRefused) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    Agent second(host.io, host.config);
    std::optional<Status> ended;
    asio::co_spawn(host.io, second.run({}), [&](std::exception_ptr, Status status) { ended = std::move(status); });
    ASSERT_TRUE(host.until([&] { return ended.has_value(); }));
    ASSERT_FALSE(*ended);
    EXPECT_EQ(ended->error().code, Errc::conflict);
  });
}

TEST_F(AgentTest, AColdRaiseAnswersAtThePublishedPortAndStopLeavesNothing) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    const auto raised = host.raise(spec_of(host.directory / "root"), "site.1", 1);
    ASSERT_OK(raised);
    EXPECT_EQ(raised->way, Way::cold);
    RecordProperty("cold_raise_us", static_cast<int>(raised->times.raise.count() / 1000));
    RecordProperty("cold_ready_us", static_cast<int>(raised->times.ready.count() / 1000));
    EXPECT_GT(raised->times.raise, 0ns);
    EXPECT_GT(raised->times.ready, 0ns);
    EXPECT_EQ(host.get(raised->endpoint), "answer 2") << "the readiness request was the first";
    ASSERT_TRUE(host.until([&] { return host.reported("site.1") != nullptr; }));
    EXPECT_EQ(host.reported("site.1")->state, InstanceState::running);
    const auto logs = host.ask_agent("GET", "/v1/instances/site.1/logs?lines=5", "");
    ASSERT_OK(logs);
    EXPECT_THAT(logs->body, HasSubstr("starting serve"));
    const auto inspected = host.call(InspectCall{site, InstanceId("site.1"), Epoch::make(1, 0)});
    ASSERT_OK(inspected);
    EXPECT_EQ(inspected->state, InstanceState::running);
    ASSERT_OK(host.call(StopCall{site, InstanceId("site.1"), Epoch::make(1, 0)}));
    EXPECT_FALSE(host.directory_has("site.1"));
    EXPECT_FALSE(os::Cgroup::open(host.config.cgroup + "/site.1"));
    EXPECT_THAT(host.get(raised->endpoint), ::testing::Not(HasSubstr("answer")));
  });
}

TEST_F(AgentTest, AnApplicationThatNeverGetsReadySaysItsLastLogLines) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    WorkloadSpec deaf = spec_of(host.directory / "root", "deaf");
    deaf.service.ready.start_limit = 300ms;
    const auto raised = host.raise(deaf, "site.1", 1);
    ASSERT_FALSE(raised);
    EXPECT_EQ(raised.error().code, Errc::application);
    EXPECT_THAT(raised.error().message, ::testing::AllOf(HasSubstr("503"), HasSubstr("no database")));
    EXPECT_TRUE(host.until([&] { return !host.directory_has("site.1"); })) << "a failed start leaves nothing";
  });
}

TEST_F(AgentTest, AnExitDuringTheStartEndsItWithStatusAndLog) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    const auto raised = host.raise(spec_of(host.directory / "root", "exit"), "site.1", 1);
    ASSERT_FALSE(raised);
    EXPECT_THAT(raised.error().message, ::testing::AllOf(HasSubstr("exit status 3"), HasSubstr("starting exit")));
    EXPECT_TRUE(host.exits.empty()) << "the raise's answer says it";
  });
}

TEST_F(AgentTest, ARestartedAgentAdoptsWhatRunsAndReportsGoOn) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    const auto raised = host.raise(spec_of(host.directory / "root"), "site.1", 1);
    ASSERT_OK(raised);
    ASSERT_TRUE(host.until([&] { return host.reported("site.1") != nullptr; }));
    const HostReport before = host.reports.back();
    host.kill_agent();
    EXPECT_EQ(host.get(raised->endpoint), "answer 2") << "it runs without an agent";
    host.reports.clear();
    ASSERT_OK(host.start());
    ASSERT_TRUE(host.until([&] { return !host.reports.empty(); }));
    const HostReport after = host.reports.front();
    EXPECT_EQ(after.boot, before.boot);
    EXPECT_GT(after.sequence, before.sequence) << "or control would take it for an old one";
    EXPECT_EQ(after.agent, before.agent) << "the API is where it was";
    ASSERT_NE(host.reported("site.1"), nullptr);
    EXPECT_EQ(host.reported("site.1")->state, InstanceState::running);
    EXPECT_EQ(host.reported("site.1")->epoch, Epoch::make(1, 0));
    EXPECT_EQ(host.reported("site.1")->endpoint, raised->endpoint);
    EXPECT_EQ(host.get(raised->endpoint), "answer 3");
    const auto again = host.raise(spec_of(host.directory / "root"), "site.1", 1);
    ASSERT_OK(again);
    EXPECT_EQ(again->endpoint, raised->endpoint) << "raised already";
  });
}

TEST_F(AgentTest, AnInstanceThatEndsByItselfIsToldToControl) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    ASSERT_OK(host.raise(spec_of(host.directory / "root"), "site.1", 1));
    ASSERT_OK(os::Cgroup::open(host.config.cgroup + "/site.1")->kill_all());
    ASSERT_TRUE(host.until([&] { return !host.exits.empty(); }));
    EXPECT_THAT(host.exits.front(), ::testing::AllOf(HasSubstr("site.1"), HasSubstr("signal 9")));
    EXPECT_TRUE(host.until([&] { return !host.directory_has("site.1"); }));
  });
}

TEST_F(AgentTest, WhatCannotBeMadeReadyLeavesNothingBehind) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    const WorkloadSpec spec = spec_of(host.directory / "root");
    const auto expected = host.call(ExpectCall{spec, InstanceId("site.1"), Epoch::make(1, 0)});
    ASSERT_FALSE(expected);
    EXPECT_EQ(expected.error().code, Errc::unsupported) << expected.error().text();
    EXPECT_FALSE(host.directory_has("site.1"));
    // And what comes under that name begins as if nothing had been.
    ASSERT_OK(host.raise(spec, "site.1", 2));
  });
}

TEST_F(AgentTest, AStandbyIsStartedThenFrozenAndARaiseThawsIt) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    const auto prepared =
        host.call(PrepareCall{spec_of(host.directory / "root"), InstanceId("site.2"), Epoch::make(1, 0), {}});
    ASSERT_OK(prepared);
    ASSERT_TRUE(
        host.until([&] { return host.reported("site.2") && host.reported("site.2")->state == InstanceState::frozen; }));
    const auto raised = host.raise(spec_of(host.directory / "root"), "site.3", 2);
    ASSERT_OK(raised);
    EXPECT_EQ(raised->way, Way::frozen);
    EXPECT_EQ(raised->instance, InstanceId("site.2"));
    EXPECT_EQ(host.get(raised->endpoint), "answer 3") << "one request before it was frozen, one after the thaw";
    ASSERT_OK(host.call(SleepCall{site, InstanceId("site.2"), Epoch::make(2, 0)}));
    ASSERT_TRUE(host.until([&] { return host.reported("site.2")->state == InstanceState::frozen; }));
    const auto woken = host.raise(spec_of(host.directory / "root"), "site.4", 3);
    ASSERT_OK(woken);
    EXPECT_EQ(woken->instance, InstanceId("site.2"));
    EXPECT_EQ(host.get(woken->endpoint), "answer 5");
    RecordProperty("thaw_us", static_cast<int>(woken->times.raise.count() / 1000));
  });
}

TEST_F(AgentTest, AStandbyThatDoesNotAnswerIsNotCountedOn) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    WorkloadSpec spec = spec_of(host.directory / "root");
    spec.service.ready.contains = "what it never says";
    spec.service.ready.start_limit = 300ms;
    const auto prepared = host.call(PrepareCall{spec, InstanceId("site.2"), Epoch::make(1, 0), {}});
    ASSERT_FALSE(prepared);
    EXPECT_THAT(prepared.error().message, HasSubstr("what it never says"));
    ASSERT_TRUE(host.until([&] { return !host.reported("site.2"); }));
  });
}

TEST_F(AgentTest, WhatTheHeartbeatsAnswerRetiresGoes) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    ASSERT_OK(host.raise(spec_of(host.directory / "root"), "site.1", 1));
    host.retire.push_back(nlohmann::json(StopCall{site, InstanceId("site.1"), Epoch::make(1, 0)}));
    EXPECT_TRUE(host.until([&] { return !host.directory_has("site.1"); }));
  });
}

TEST_F(AgentTest, AnExclusiveOwnerRunsByItsLeaseAndStandsStillWhenControlRefuses) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    WorkloadSpec exclusive = spec_of(host.directory / "root");
    exclusive.policy.consistency = Consistency::exclusive;
    exclusive.policy.lease = 1s;
    const auto raised = host.raise(exclusive, "site.1", 1);
    ASSERT_OK(raised);
    EXPECT_GE(host.renewals, 1u) << "nothing runs before a round trip";
    host.answers_renewals = false;
    ASSERT_TRUE(
        host.until([&] { return host.reported("site.1") && host.reported("site.1")->state == InstanceState::frozen; }));
    const auto seen = host.call(InspectCall{site, InstanceId("site.1"), Epoch::make(1, 0)});
    ASSERT_OK(seen);
    EXPECT_EQ(seen->state, InstanceState::frozen);
  });
}

TEST_F(AgentTest, ABuiltImageIsRestoredAndACutOneIsPassedOver) {
  on_a_host([](Host& host) {
    if (host.config.criu.empty()) GTEST_SKIP() << "needs a working CRIU: $YADO_CRIU";
    ASSERT_OK(host.start());
    const WorkloadSpec spec = spec_of(host.directory / "root");
    const ImageId image("site-img.1");
    const auto built = host.call(BuildCall{spec, InstanceId("site.1"), Epoch::make(1, 0), image});
    ASSERT_OK(built);
    ASSERT_TRUE(built->image);
    EXPECT_EQ(built->image->id, image);
    EXPECT_FALSE(host.directory_has("site.1")) << "the builder is gone";
    ASSERT_TRUE(host.until([&] { return !host.reports.empty() && host.reports.back().images.size() == 1; }));

    const auto raised = host.raise(spec, "site.2", 2, image);
    ASSERT_OK(raised);
    RecordProperty("image_raise_us", static_cast<int>(raised->times.raise.count() / 1000));
    RecordProperty("image_ready_us", static_cast<int>(raised->times.ready.count() / 1000));
    EXPECT_EQ(raised->way, Way::image) << raised->detail;
    EXPECT_EQ(host.get(raised->endpoint), "answer 2") << "the image was taken before it served anything";

    const auto prepared = host.call(PrepareCall{spec, InstanceId("site.3"), Epoch::make(2, 0), image});
    ASSERT_OK(prepared);
    const auto thawed = host.raise(spec, "site.4", 3, image);
    ASSERT_OK(thawed);
    EXPECT_EQ(thawed->way, Way::frozen) << thawed->detail;

    fs::path pages;
    for (const auto& entry : fs::directory_iterator(host.config.state_directory / "images" / "site-img.1" / "criu"))
      if (entry.path().filename().native().starts_with("pages")) pages = entry.path();
    ASSERT_FALSE(pages.empty());
    fs::resize_file(pages, fs::file_size(pages) / 2);
    const auto cold = host.raise(spec, "site.5", 4, image);
    ASSERT_OK(cold);
    EXPECT_EQ(cold->way, Way::cold);
    EXPECT_THAT(cold->detail, HasSubstr("pages")) << "it says why the faster way was not taken";
  });
}

TEST_F(AgentTest, AnImageThatWasPulledIsRestoredThere) {
  on_a_host([](Host& host) {
    if (host.config.criu.empty()) GTEST_SKIP() << "needs a working CRIU: $YADO_CRIU";
    ASSERT_OK(host.start());
    const WorkloadSpec spec = spec_of(host.directory / "root");
    const ImageId image("site-img.1");
    ASSERT_OK(host.call(BuildCall{spec, InstanceId("site.1"), Epoch::make(1, 0), image}));

    auto authority = wire::Authority::open_or_create(host.directory / "ca");
    ASSERT_OK(authority);
    auto identity = authority->issue("agent:h2");
    ASSERT_OK(identity);
    ASSERT_OK(identity->save(host.directory / "identity-2"));
    Config config = host.config;
    config.host = HostId("h2");
    config.identity = host.directory / "identity-2";
    config.state_directory = host.directory / "state-2";
    config.cgroup += "/h2";
    config.background_bytes_per_second = 512 << 10;
    Agent second(host.io, config);
    std::uint16_t port = 0;
    std::optional<Status> ended;
    asio::co_spawn(host.io, second.run([&](std::uint16_t bound) { port = bound; }),
                   [&](std::exception_ptr, Status status) { ended = std::move(status); });
    ASSERT_TRUE(host.until([&] { return port != 0 || ended; }));
    ASSERT_FALSE(ended) << ended->error().text();
    const auto ask = [&](const AgentCall& what) -> Result<CallReply> {
      YADO_ASSIGN(wire::Client client, wire::Client::tls(host.io, address, port, host.control_identity, "agent:h2"),
                  "test");
      wire::Request request;
      request.method = "POST";
      request.target = fmt::format("/v1/calls/{}", name_of(what));
      request.body = api::dump(nlohmann::json(what));
      YADO_ASSIGN(const wire::Response response, wire::run(host.io, client.call(std::move(request), hang)), "test");
      if (response.status != 200) return fail(Errc::internal, "{}", response.body);
      return api::parse<CallReply>(response.body);
    };
    const Instant begun = os::now();
    const auto pulled = ask(PullCall{.spec = spec, .epoch = Epoch::make(1, 0), .image = image, .from = {address, host.port}, .in_background = true});
    const double seconds = to_ms(os::now() - begun) / 1000;
    ASSERT_OK(pulled);
    ASSERT_TRUE(pulled->image);
    EXPECT_EQ(pulled->image->id, image);
    const auto store = image::Store::look_into(config.state_directory / "images");
    ASSERT_OK(store);
    const double bytes = static_cast<double>(store->read(image)->data_bytes());
    EXPECT_GT(bytes, 128.0 * (1 << 10)) << "too little to tell";
    EXPECT_LE(bytes / seconds, static_cast<double>(config.background_bytes_per_second));
    const auto raised = ask(RaiseCall{spec, site, InstanceId("site.2"), Epoch::make(2, 0), image});
    EXPECT_TRUE(raised) << raised.error().text();
    if (raised) {
      EXPECT_EQ(raised->way, Way::image) << raised->detail;
      EXPECT_EQ(host.get(raised->endpoint), "answer 2");
      EXPECT_TRUE(ask(StopCall{site, InstanceId("site.2"), Epoch::make(2, 0)}));
    }
    second.stop();
    EXPECT_TRUE(host.until([&] { return ended.has_value(); }));
  });
}

TEST_F(AgentTest, AnImageOfAChangedRootIsNotRestored) {
  on_a_host([](Host& host) {
    if (host.config.criu.empty()) GTEST_SKIP() << "needs a working CRIU: $YADO_CRIU";
    ASSERT_OK(host.start());
    const WorkloadSpec spec = spec_of(host.directory / "root");
    const ImageId image("site-img.1");
    ASSERT_OK(host.call(BuildCall{spec, InstanceId("site.1"), Epoch::make(1, 0), image}));
    host.kill_agent();
    std::ofstream(host.directory / "root" / "etc" / "new-version") << "2";
    host.reports.clear();
    ASSERT_OK(host.start());
    const auto raised = host.raise(spec, "site.2", 2, image);
    ASSERT_OK(raised);
    EXPECT_EQ(raised->way, Way::cold);
    EXPECT_TRUE(host.until([&] { return !host.reports.empty() && host.reports.back().images.empty(); }))
        << "control is not told of it, so that it builds a new one";
  });
}

TEST_F(AgentTest, AGateMayRaiseWhatIsSharedByAnEpochOfItsOwnAndNothingElse) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    auto authority = wire::Authority::open_or_create(host.directory / "ca");
    ASSERT_OK(authority);
    auto gate = authority->issue("gate:g1");
    ASSERT_OK(gate);
    const wire::Identity control = std::exchange(host.control_identity, *gate);
    const WorkloadSpec spec = spec_of(host.directory / "root");
    WorkloadSpec exclusive = spec;
    exclusive.policy.consistency = Consistency::exclusive;
    const auto code_of = [&](const AgentCall& what) {
      const auto reply = host.call(what);
      return reply ? Errc::internal : reply.error().code;
    };
    const Epoch own = Epoch::make(3, 1);
    EXPECT_EQ(code_of(StopCall{site, InstanceId("site.1"), own}), Errc::permission);
    EXPECT_EQ(code_of(RaiseCall{exclusive, site, InstanceId("site.1"), own, {}}), Errc::permission);
    EXPECT_EQ(code_of(RaiseCall{spec, site, InstanceId("site.1"), Epoch::make(3, 0), {}}), Errc::permission);
    EXPECT_EQ(code_of(RaiseCall{{}, site, InstanceId("site.1"), own, {}}), Errc::not_found) << "never told of it";
    ASSERT_OK(host.call(RaiseCall{spec, site, InstanceId("site.1"), own, {}}));
    const auto exec = host.ask_agent("POST", "/v1/instances/site.1/exec", R"({"command":["/usr/bin/perl","-e","1"]})");
    ASSERT_OK(exec);
    EXPECT_EQ(exec->status, 403);
    host.control_identity = control;
  });
}

TEST_F(AgentTest, ExecRunsInsideAndSaysHowItEnded) {
  on_a_host([](Host& host) {
    ASSERT_OK(host.start());
    ASSERT_OK(host.raise(spec_of(host.directory / "root"), "site.1", 1));
    const auto done = host.ask_agent("POST", "/v1/instances/site.1/exec",
                                     R"({"command":["/usr/bin/perl","-e","print 6*7; exit 5"]})");
    ASSERT_OK(done);
    EXPECT_THAT(done->body, ::testing::AllOf(HasSubstr("\"output\":\"42\""), HasSubstr("\"status\":5")));
    const auto nobody = host.ask_agent("POST", "/v1/instances/site.9/exec", R"({"command":["x"]})");
    ASSERT_OK(nobody);
    EXPECT_EQ(nobody->status, 404);
    const auto nonsense = host.ask_agent("POST", "/v1/instances/site.1/exec", R"({"command":[]})");
    ASSERT_OK(nonsense);
    EXPECT_EQ(nonsense->status, 400);
  });
}

TEST_F(AgentTest, WithoutCriuItSaysSoAndGoesOn) {
  on_a_host([](Host& host) {
    host.config.criu.clear();
    ASSERT_OK(host.start());
    ASSERT_TRUE(host.until([&] { return !host.reports.empty(); }));
    EXPECT_FALSE(host.reports.back().checkpoint_works);
    const auto built = host.call(
        BuildCall{spec_of(host.directory / "root"), InstanceId("site.1"), Epoch::make(1, 0), ImageId("site-img.1")});
    ASSERT_FALSE(built);
    EXPECT_EQ(built.error().code, Errc::unsupported);
    EXPECT_THAT(built.error().message, HasSubstr("install-criu"));
    ASSERT_OK(host.raise(spec_of(host.directory / "root"), "site.2", 1));
  });
}

TEST(HostFactsTest, TheBootIdIsTheSameForEveryProcessOfABoot) {
  EXPECT_EQ(boot_id(), boot_id());
  EXPECT_GT(host_load().memory_free_bytes, 0u);
}

}  // namespace
}  // namespace yado::agent
