// What becomes of requests whose instance closes, refuses, sleeps or falls silent, with control and without it.

#include <fstream>

#include "gate/gate.hpp"
#include "gate/test_world.hpp"

namespace yado::gate {
namespace {
using namespace testing;

std::string hello(const Answer&, const wire::Head& head) { return Instance::ok("hello " + head.target); }

/// Takes one request and ends the connection without an answer.
Co<void> takes_and_closes(Talk& talk) { co_await talk.message(); }
/// Takes requests and never answers.
Co<void> takes_and_waits(Talk& talk) {
  for (bool open = true; open;) open = co_await talk.more();
}

class FailoverTest : public ::testing::Test {
 protected:
  Instance& add(Instance::Serve serve) {
    instances.push_back(std::make_unique<Instance>(world.io, std::move(serve)));
    return *instances.back();
  }
  /// "site" is served by `at` on h1; h2 is another living host.
  Route& start(std::optional<Endpoint> at, Gate::Config config = {}) {
    world.start_control();
    Route& route = prepare(std::move(at));
    world.start_gate(std::move(config));
    return route;
  }
  Route& prepare(std::optional<Endpoint> at) {
    Instance& living = add(takes_and_waits);  // its port stands for the agents
    world.add_host("h1", living.at());
    world.add_host("h2", living.at());
    return world.add_route("site", "h1", std::move(at));
  }
  void TearDown() override {
    if (world.gate) {
      EXPECT_EQ(world.gate->counters().ticks_without_progress, 0u);
    }
  }
  void relocate_to(const Instance& instance, bool fenced = false) {
    world.answer_ask = [this, at = instance.at(), fenced](const std::string&, const nlohmann::json&) {
      return World::relocated(world.table.routes[0], at, "h2", fenced);
    };
  }

  World world;
  std::vector<std::unique_ptr<Instance>> instances;
};

// ---- the instance closes -------------------------------------------------------------------------------------------

TEST_F(FailoverTest, AGetOnAKeptConnectionThatIsClosedIsRepeatedOnAFreshOne) {
  int connection = 0;
  Instance& instance = add([&](Talk& talk) -> Co<void> {
    const bool first = ++connection == 1;
    co_await talk.message();
    co_await talk.send(Instance::ok("one"));
    const Answer second = co_await talk.message();
    if (first || !second.complete) co_return;
    co_await talk.send(Instance::ok("two"));
  });
  start(instance.at());
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  EXPECT_EQ(world.run(client->message()).body, "one");
  world.run(client->send(World::get()));
  EXPECT_EQ(world.run(client->message()).body, "one");
  EXPECT_EQ(instance.connections(), 2u);
  EXPECT_EQ(world.gate->counters().unknown_outcomes, 0u);
}

TEST_F(FailoverTest, APostThatWasSentAndNotAnsweredHasAnUnknownOutcome) {
  Instance& instance = add(takes_and_closes);
  start(instance.at());
  auto client = world.run(world.connect());
  world.run(client->send(World::post("x=1")));
  const Answer answer = world.run(client->message());
  EXPECT_EQ(answer.status, 502);
  EXPECT_EQ(answer.header("x-yado-outcome"), "unknown");
  auto body = api::parse_json(answer.body);
  ASSERT_TRUE(body);
  EXPECT_EQ((*body)["outcome"], "unknown");
  EXPECT_EQ(instance.connections(), 1u);
  EXPECT_EQ(world.gate->counters().unknown_outcomes, 1u);
  // The request was read to its end: the connection goes on.
  world.run(client->send(World::get("/", "nobody.example")));
  EXPECT_EQ(world.run(client->message()).status, 404);
}

TEST_F(FailoverTest, APostWithAKeyIsRepeatedWithItsBody) {
  std::vector<std::string> bodies;
  Instance& instance = add([&](Talk& talk) -> Co<void> {
    const Answer request = co_await talk.message();
    bodies.push_back(request.body);
    if (bodies.size() > 1) co_await talk.send(Instance::ok("counted"));
  });
  world.start_control();
  prepare(instance.at()).service.idempotency_header = "Idempotency-Key";
  world.start_gate();
  const Answer answer = world.run(world.ask(World::post("x=1", "Idempotency-Key: 7\r\n"), "POST"));
  EXPECT_EQ(answer.body, "counted");
  EXPECT_EQ(bodies, (std::vector<std::string>{"x=1", "x=1"}));
}

TEST_F(FailoverTest, ABodyTooLongToKeepIsNotRepeated) {
  Instance& instance = add(takes_and_closes);
  world.start_control();
  prepare(instance.at()).service.idempotency_header = "idempotency-key";
  Gate::Config config;
  config.limits.replay_bytes = 1000;
  world.start_gate(std::move(config));
  const std::string long_body(2000, 'x');
  const Answer answer = world.run(world.ask(World::post(long_body, "Idempotency-Key: 7\r\n"), "POST"));
  EXPECT_EQ(answer.status, 502);
  EXPECT_EQ(answer.header("x-yado-outcome"), "unknown");
  EXPECT_EQ(instance.connections(), 1u);
}

TEST_F(FailoverTest, AnAnswerThatEndsInTheMiddleIsNeverEndedCleanly) {
  Instance& instance = add([](Talk& talk) -> Co<void> {
    co_await talk.message();
    if (talk.head().target == "/chunked")
      co_await talk.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
    else
      co_await talk.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nhello");
  });
  start(instance.at());
  for (const char* path : {"/length", "/chunked"}) {
    auto client = world.run(world.connect());
    world.run(client->send(World::get(path)));
    const Answer answer = world.run(client->message());
    EXPECT_EQ(answer.body, "hello") << path;
    EXPECT_FALSE(answer.complete) << path;
    EXPECT_EQ(client->end(), asio::error::connection_reset) << path;
  }
  // A client of HTTP/1.0 would take a clean end for the end of the body.
  auto old = world.run(world.connect());
  world.run(old->send("GET /chunked HTTP/1.0\r\nHost: site.example\r\n\r\n"));
  world.run(old->rest());
  EXPECT_EQ(old->end(), asio::error::connection_reset);
  EXPECT_EQ(world.gate->counters().broken_off, 3u);
}

TEST_F(FailoverTest, AShortAnswerThatEndsInTheMiddleIsAskedForAgain) {
  int times = 0;
  Instance& instance = add([&](Talk& talk) -> Co<void> {
    const Answer request = co_await talk.message();
    const bool cut_short = talk.head().method == "POST" || ++times == 1;
    if (cut_short) co_await talk.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello");
    else co_await talk.send(Instance::ok("hello again"));
  });
  start(instance.at());
  EXPECT_EQ(world.run(world.ask(World::get())).body, "hello again");
  // What must not be repeated is refused with the reason, and the client's connection goes on.
  auto client = world.run(world.connect());
  world.run(client->send(World::post("x")));
  const Answer refused = world.run(client->message());
  EXPECT_EQ(refused.status, 502);
  EXPECT_EQ(refused.header("x-yado-outcome"), "unknown");
  EXPECT_EQ(world.gate->counters().broken_off, 0u);
}

TEST_F(FailoverTest, AnInstanceThatSpeaksNoHttpIsABadGateway) {
  Instance& instance = add([](Talk& talk) -> Co<void> {
    co_await talk.message();
    co_await talk.send("SSH-2.0-OpenSSH_9.2\r\n");
  });
  start(instance.at());
  const Answer answer = world.run(world.ask(World::get()));
  EXPECT_EQ(answer.status, 502);
}

TEST_F(FailoverTest, AnOwnerWithoutAnAddressIsNotTakenForThisMachine) {
  start(Endpoint{"", world.port});
  const Answer answer = world.run(world.ask(World::get()));
  EXPECT_EQ(answer.status, 502);
  EXPECT_EQ(answer.header("x-yado-outcome"), "none");
}

TEST_F(FailoverTest, AnEarlyAnswerEndsTheUpload) {
  Instance& instance = add([](Talk& talk) -> Co<void> {
    co_await talk.more();
    co_await talk.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!");
    co_await talk.rest();
  });
  start(instance.at());
  auto client = world.run(world.connect());
  world.run(client->send("POST / HTTP/1.1\r\nHost: site.example\r\nContent-Length: 1000000000\r\n\r\nbeginning"));
  const Answer answer = world.run(client->message());
  EXPECT_EQ(answer.status, 413);
  EXPECT_EQ(answer.body, "no!");
  EXPECT_EQ(answer.header("connection"), "close");
  client->reset();
  world.run_until([&] { return world.gate->counters().open == 0; });
}

// ---- the client goes -----------------------------------------------------------------------------------------------

TEST_F(FailoverTest, AClientThatGoesTakesItsRequestAlong) {
  Instance& instance = add(takes_and_waits);
  start(instance.at());
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  world.run_until([&] { return instance.connections() == 1 && !instance.talk(0).input().empty(); });
  client->reset();
  world.run_until([&] { return instance.talk(0).end() == asio::error::connection_reset; });
  world.run_until([&] { return world.gate->counters().open == 0; });
  EXPECT_EQ(world.gate->counters().clients_gone, 1u);
}

TEST_F(FailoverTest, AClientThatGoesInTheMiddleOfItsBodyIsNotAnswered) {
  Instance& instance = add(takes_and_waits);
  start(instance.at());
  auto client = world.run(world.connect());
  world.run(client->send("POST / HTTP/1.1\r\nHost: site.example\r\nContent-Length: 100\r\n\r\nhalf"));
  world.run_until([&] { return instance.connections() == 1 && instance.talk(0).input().ends_with("half"); });
  client->reset();
  world.run_until([&] { return instance.talk(0).end() == asio::error::connection_reset; });
  world.run_until([&] { return world.gate->counters().open == 0; });
}

TEST_F(FailoverTest, AMalformedChunkInTheMiddleOfABodyReachesNobodyAsAWhole) {
  Instance& instance = add(takes_and_waits);
  start(instance.at());
  auto client = world.run(world.connect());
  world.run(client->send("POST / HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"));
  world.run_until([&] { return instance.connections() == 1 && instance.talk(0).input().ends_with("half\r\n"); });
  world.run(client->send("what?\r\n"));
  EXPECT_EQ(world.run(client->message()).status, 400);
  EXPECT_EQ(instance.talk(0).end(), asio::error::connection_reset);
}

// ---- held, and let go ----------------------------------------------------------------------------------------------

TEST_F(FailoverTest, ASleepingWorkloadIsWokenByItsFirstRequest) {
  Instance& instance = add(Instance::replying(hello));
  relocate_to(instance);
  start(std::nullopt);
  const Answer answer = world.run(world.ask(World::get("/wake")));
  EXPECT_EQ(answer.body, "hello /wake");
  EXPECT_EQ(answer.header("x-yado-instance"), "site@h2");
  ASSERT_EQ(world.asks.size(), 1u);
  EXPECT_EQ(world.asks[0]["evidence"], "asleep");
}

TEST_F(FailoverTest, ManyRequestsShareOneRelocationAndNoneIsLost) {
  Instance& second = add(Instance::replying(hello));
  Instance& first = add(Instance::replying(hello));
  relocate_to(second);
  start(first.at());
  first.stop_listening();
  std::vector<std::shared_ptr<Talk>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(world.run(world.connect()));
    world.run(clients.back()->send(i % 2 ? World::get() : World::post("x")));
  }
  for (auto& client : clients) EXPECT_EQ(world.run(client->message()).status, 200);
  ASSERT_EQ(world.asks.size(), 1u);
  EXPECT_EQ(world.asks[0]["evidence"], "refused");
  EXPECT_EQ(world.asks[0]["suspect"], "h1");
  EXPECT_EQ(world.asks[0]["observed"], 256);
}

TEST_F(FailoverTest, AHeldRequestsBodyStaysWithTheClientUntilThereIsAnInstance) {
  Instance& instance = add(Instance::replying(
      [](const Answer& request, const wire::Head&) { return Instance::ok(std::to_string(request.body.size())); }));
  relocate_to(instance);
  world.hold_asks = true;
  start(std::nullopt);
  auto client = world.run(world.connect());
  constexpr std::size_t total = 64 << 20;  // more than the kernel's buffers take
  std::string text = fmt::format("PUT / HTTP/1.1\r\nHost: site.example\r\nContent-Length: {}\r\n\r\n", total);
  text.append(total, 'x');
  bool all_sent = false;
  asio::co_spawn(world.io, client->send(std::move(text)), [&](std::exception_ptr, bool sent) { all_sent = sent; });
  world.run_until([&] { return !world.asks_held.empty(); });
  while (world.io.poll() > 0) {
  }
  EXPECT_FALSE(all_sent);
  EXPECT_EQ(world.gate->counters().held, 1u);
  world.asks_held.front()->cancel();
  EXPECT_EQ(world.run(client->message()).body, std::to_string(total));
}

TEST_F(FailoverTest, ARelocationThatFailsIsRefusedWithTheReason) {
  world.answer_ask = [](const std::string&, const nlohmann::json&) {
    return api::answer(Error{Errc::application, "site: the application exited"});
  };
  start(std::nullopt);
  auto client = world.run(world.connect());
  world.run(client->send(World::post("x")));
  const Answer answer = world.run(client->message());
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.header("retry-after"), "1");
  EXPECT_EQ(answer.header("x-yado-outcome"), "none");
  EXPECT_NE(answer.body.find("the application exited"), std::string::npos) << answer.body;
}

TEST_F(FailoverTest, ATableThatNamesAnOwnerLetsHeldRequestsGo) {
  Instance& instance = add(Instance::replying(hello));
  world.hold_asks = true;
  start(std::nullopt);
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  world.run_until([&] { return !world.asks_held.empty(); });
  Route& route = world.table.routes[0];
  route.state = RouteState::up;
  route.epoch = route.epoch.next();
  route.endpoint = instance.at();
  world.push_table();
  EXPECT_EQ(world.run(client->message()).status, 200);
  world.asks_held.front()->cancel();
}

TEST_F(FailoverTest, ASilentHostIsLeftGetsAreRepeatedAndPostsAreNot) {
  Instance& first = add(takes_and_waits);
  Instance& second = add(Instance::replying(hello));
  SilentMachine silent(world.io);
  relocate_to(second);
  world.start_control();
  prepare(first.at());
  world.table.hosts[0].agent = silent.at();
  world.start_gate();
  auto get = world.run(world.connect()), post = world.run(world.connect());
  world.run(get->send(World::get("/again")));
  world.run(post->send(World::post("x")));
  EXPECT_EQ(world.run(get->message()).body, "hello /again");
  const Answer refused = world.run(post->message());
  EXPECT_EQ(refused.status, 502);
  EXPECT_EQ(refused.header("x-yado-outcome"), "unknown");
  ASSERT_EQ(world.asks.size(), 1u);
  EXPECT_EQ(world.asks[0]["evidence"], "silent");
  // Given up means reset: nothing that is still unsent may reach the old owner.
  world.run_until([&] {
    return first.talk(0).end() == asio::error::connection_reset && first.talk(1).end() == asio::error::connection_reset;
  });
}

TEST_F(FailoverTest, AStoppedWorkloadIsRefused) {
  world.start_control();
  prepare(std::nullopt).state = RouteState::stopped;
  world.start_gate();
  const Answer answer = world.run(world.ask(World::get()));
  EXPECT_EQ(answer.status, 503);
  EXPECT_TRUE(world.asks.empty());
}

TEST_F(FailoverTest, EventsReachControlInOrder) {
  Instance& instance = add(Instance::replying(hello));
  relocate_to(instance);
  start(std::nullopt);
  world.run(world.ask(World::get()));
  world.run_until([&] { return world.events.size() >= 2; });
  EXPECT_EQ(world.events[0]["kind"], "suspect");
  EXPECT_EQ(world.events[1]["kind"], "switch");
  EXPECT_GT(world.events[0]["at_ns"].get<std::int64_t>(), 0);
  EXPECT_LE(world.events[0]["at_ns"].get<std::int64_t>(), world.events[1]["at_ns"].get<std::int64_t>());
}

TEST_F(FailoverTest, AnIdleWorkloadIsReported) {
  Instance& instance = add(Instance::replying(hello));
  world.start_control();
  prepare(instance.at()).lifetime = 20ms;
  world.start_gate();
  world.run_until([&] { return !world.idles.empty(); });
  EXPECT_EQ(world.idles[0]["observed"], 256);
}

// ---- without control -----------------------------------------------------------------------------------------------

TEST_F(FailoverTest, WithoutControlAFallbackHostsAgentRaises) {
  Instance& first = add(Instance::replying(hello));
  Instance& second = add(Instance::replying(hello));
  world.start_control();
  prepare(first.at()).fallback = {HostId("h9"), HostId("h3")};
  world.start_agent("h3", [&](const wire::Request&) {
    CallReply reply;
    reply.endpoint = second.at();
    return api::answer(nlohmann::json(reply));
  });
  world.start_gate();
  EXPECT_EQ(world.run(world.ask(World::get())).header("x-yado-instance"), "site@h1");
  asio::post(world.io, [&] { world.control.reset(); });
  first.stop_listening();
  first.talk(0).reset();
  const Answer answer = world.run(world.ask(World::get("/without")));
  EXPECT_EQ(answer.body, "hello /without");
  EXPECT_EQ(answer.header("x-yado-instance"), "site@h3");
  EXPECT_EQ(answer.header("x-yado-epoch"), std::to_string(Epoch::make(2, 1).value()));
  ASSERT_EQ(world.raises.size(), 1u);
  EXPECT_EQ(world.raises[0].target, "/v1/calls/raise");
  auto call = api::parse_call("raise", world.raises[0].body);
  ASSERT_TRUE(call) << call.error().text();
  EXPECT_EQ(epoch_of(*call), Epoch::make(2, 1));
  EXPECT_FALSE(std::get<RaiseCall>(*call).spec);
}

TEST_F(FailoverTest, ControlThatComesBackIsAskedAgain) {
  Instance& instance = add(Instance::replying(hello));
  relocate_to(instance);
  start(std::nullopt);
  world.table.routes[0].consistency = Consistency::exclusive;
  world.push_table();
  world.run_until([&] { return world.tables_told == 2; });
  world.hold_asks = true;
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  world.run_until([&] { return world.asks.size() == 1; });
  const std::uint16_t port = world.control_port;
  bool stopped = false;
  asio::post(world.io, [&] {
    world.control.reset();
    stopped = true;
  });
  world.run_until([&] { return stopped; });
  world.hold_asks = false;
  world.start_control(port);
  EXPECT_EQ(world.run(client->message()).status, 200);
  EXPECT_EQ(world.asks.size(), 2u);
}

TEST_F(FailoverTest, AGateStartedWithoutControlServesByTheLastTable) {
  Instance& instance = add(Instance::replying(hello));
  const std::filesystem::path file = world.directory / "routes.json";
  Gate::Config config;
  config.table_file = file;
  start(instance.at(), std::move(config));
  bool stopped = false;
  asio::post(world.io, [&] {
    world.gate.reset();
    world.control.reset();
    stopped = true;
  });
  world.run_until([&] { return stopped; });
  Gate::Config again;
  again.table_file = file;
  world.start_gate(std::move(again));
  EXPECT_EQ(world.run(world.ask(World::get("/kept"))).body, "hello /kept");
}

TEST_F(FailoverTest, ATableFileThatIsBrokenIsNotUsed) {
  Gate::Config config;
  config.table_file = world.directory / "routes.json";
  std::ofstream(config.table_file) << R"({"version": 3, "routes": [{"workload")";
  world.start_gate(std::move(config));
  EXPECT_EQ(world.run(world.ask(World::get())).status, 404);
}

TEST_F(FailoverTest, TheAdminSocketShowsCounters) {
  Instance& instance = add(Instance::replying(hello));
  Gate::Config config;
  config.admin_socket = world.directory / "gate.sock";
  const std::string path = config.admin_socket;
  start(instance.at(), std::move(config));
  world.run(world.ask(World::get()));
  wire::Client client = wire::Client::unix_socket(world.io, path);
  wire::Request request;
  request.target = "/v1/gate";
  auto response = world.run(client.call(std::move(request), 10s));
  ASSERT_TRUE(response) << response.error().text();
  auto body = api::parse_json(response->body);
  ASSERT_TRUE(body);
  EXPECT_EQ((*body)["requests"], 1);
  EXPECT_EQ((*body)["answers"]["2xx"], 1);
}

TEST_F(FailoverTest, AGateWithControlsGranterNumberDoesNotStart) {
  Gate::Config config;
  config.granter = 0;
  config.identity = world.identity("gate:g1");
  Gate gate(world.io, std::move(config));
  const Status running = gate.run();
  ASSERT_FALSE(running);
  EXPECT_EQ(running.error().code, Errc::invalid_argument);
}

}  // namespace
}  // namespace yado::gate
