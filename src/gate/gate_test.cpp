// What clients and instances see of a gate: forwarding, framing, connections, bad requests.

#include "gate/gate.hpp"

#include "gate/test_world.hpp"

namespace yado::gate {
namespace {
using namespace testing;

std::string hello(const Answer&, const wire::Head& head) { return Instance::ok("hello " + head.target); }

class GateTest : public ::testing::Test {
 protected:
  /// A world with one workload "site" that `serve` serves on host h1.
  void start(Instance::Serve serve, Gate::Config config = {}) {
    instance = std::make_unique<Instance>(world.io, std::move(serve));
    world.start_control();
    world.add_host("h1", instance->at());
    world.add_route("site", "h1", instance->at());
    world.start_gate(std::move(config));
  }
  void TearDown() override {
    if (world.gate) {
      EXPECT_EQ(world.gate->counters().ticks_without_progress, 0u);
    }
  }

  World world;
  std::unique_ptr<Instance> instance;
};

TEST_F(GateTest, ForwardsARequestAndNamesWhoAnswered) {
  wire::Head seen;
  start(Instance::replying([&](const Answer&, const wire::Head& head) {
    seen = head;
    return std::string(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-yado-epoch: 99\r\nkeep-alive: timeout=5\r\nx-app: a\r\n\r\nhi");
  }));
  const Answer answer = world.run(world.ask(
      "GET /a?b=c HTTP/1.1\r\nHost: SITE.example:8080\r\nX-Forwarded-For: 10.1.1.1\r\nX-Forwarded-Proto: https\r\n"
      "Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nTE: trailers\r\nCookie: c=1\r\n\r\n"));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "hi");
  EXPECT_EQ(answer.header("x-app"), "a");
  EXPECT_EQ(answer.header("x-yado-instance"), "site@h1");
  EXPECT_EQ(answer.header("x-yado-epoch"), "256");
  EXPECT_EQ(answer.header("keep-alive"), "");
  EXPECT_EQ(seen.target, "/a?b=c");
  EXPECT_EQ(wire::find(seen.headers, "host"), "SITE.example:8080");
  EXPECT_EQ(wire::find(seen.headers, "x-forwarded-for"), "10.1.1.1, 127.0.0.1");
  EXPECT_EQ(wire::find(seen.headers, "x-forwarded-proto"), "http");
  EXPECT_EQ(wire::find(seen.headers, "x-forwarded-host"), "SITE.example:8080");
  EXPECT_EQ(wire::find(seen.headers, "via"), "1.1 yado");
  EXPECT_EQ(wire::find(seen.headers, "cookie"), "c=1");
  for (const char* gone : {"x-hop", "te", "connection"}) EXPECT_EQ(wire::find(seen.headers, gone), "") << gone;
}

TEST_F(GateTest, KeepsTheConnectionsOnBothSides) {
  start(Instance::replying(hello));
  auto client = world.run(world.connect());
  for (int i = 0; i < 5; ++i) {
    world.run(client->send(World::get("/" + std::to_string(i))));
    const Answer answer = world.run(client->message());
    EXPECT_EQ(answer.body, "hello /" + std::to_string(i));
  }
  EXPECT_EQ(instance->connections(), 1u);
  EXPECT_EQ(world.gate->counters().connections, 1u);
}

TEST_F(GateTest, APostTravelsOnAConnectionOfItsOwn) {
  start(Instance::replying(hello));
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  world.run(client->message());
  world.run(client->send(World::post("x=1")));
  EXPECT_EQ(world.run(client->message()).status, 200);
  EXPECT_EQ(instance->connections(), 2u);
}

TEST_F(GateTest, PipelinedRequestsAreAnsweredInOrder) {
  start(Instance::replying(hello));
  auto client = world.run(world.connect());
  world.run(client->send(World::get("/1") + World::post("body") + World::get("/3")));
  EXPECT_EQ(world.run(client->message()).body, "hello /1");
  EXPECT_EQ(world.run(client->message()).body, "hello /form");
  EXPECT_EQ(world.run(client->message()).body, "hello /3");
}

TEST_F(GateTest, AnOldClientGetsABodyThatEndsWithTheConnection) {
  start(Instance::replying([](const Answer&, const wire::Head&) {
    return std::string("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  }));
  auto client = world.run(world.connect());
  world.run(client->send("GET / HTTP/1.0\r\nHost: site.example\r\n\r\n"));
  const std::string all = world.run(client->rest());
  EXPECT_EQ(all.find("transfer-encoding"), std::string::npos) << all;
  EXPECT_TRUE(all.ends_with("\r\n\r\nabcde")) << all;
  EXPECT_EQ(client->end(), asio::error::eof);
}

TEST_F(GateTest, ChunkedBodiesPassBothWays) {
  std::string received;
  start(Instance::replying([&](const Answer& request, const wire::Head& head) {
    received = request.body;
    EXPECT_EQ(head.body, wire::BodyKind::chunked);
    return std::string(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n");
  }));
  auto client = world.run(world.connect());
  world.run(client->send("POST / HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"));
  world.run(client->send("6\r\n world\r\n0\r\n\r\n"));
  const Answer answer = world.run(client->message());
  EXPECT_EQ(received, "hello world");
  EXPECT_EQ(answer.body, "abcdefg");
  EXPECT_EQ(answer.header("transfer-encoding"), "chunked");
}

TEST_F(GateTest, ABodyThatEndsWithTheInstancesConnectionIsChunkedForTheClient) {
  start([](Talk& talk) -> Co<void> {
    co_await talk.message();
    co_await talk.send("HTTP/1.1 200 OK\r\n\r\nall of it");
  });
  const Answer answer = world.run(world.ask(World::get()));
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.body, "all of it");
}

TEST_F(GateTest, AnswersWithoutABodyKeepTheConnection) {
  start(Instance::replying([](const Answer&, const wire::Head& head) {
    if (head.method == "HEAD") return std::string("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n");
    if (head.target == "/204") return std::string("HTTP/1.1 204 No Content\r\n\r\n");
    if (head.target == "/304")
      return std::string("HTTP/1.1 304 Not Modified\r\ncontent-length: 77\r\netag: \"e\"\r\n\r\n");
    return Instance::ok("");
  }));
  auto client = world.run(world.connect());
  world.run(client->send("HEAD / HTTP/1.1\r\nHost: site.example\r\n\r\n"));
  const Answer head = world.run(client->message("HEAD"));
  EXPECT_EQ(head.header("content-length"), "1234");
  EXPECT_EQ(head.body, "");
  world.run(client->send(World::get("/204")));
  EXPECT_EQ(world.run(client->message()).status, 204);
  world.run(client->send(World::get("/304")));
  const Answer unchanged = world.run(client->message());
  EXPECT_EQ(unchanged.status, 304);
  EXPECT_EQ(unchanged.header("content-length"), "77");
  world.run(client->send(World::get("/empty")));
  EXPECT_EQ(world.run(client->message()).header("content-length"), "0");
  EXPECT_EQ(instance->connections(), 1u);
}

std::string pattern(std::size_t bytes) {
  std::string text(bytes, '\0');
  std::uint32_t state = 1;
  for (char& c : text) c = static_cast<char>('a' + ((state = state * 1664525 + 1013904223) >> 24) % 26);
  return text;
}

TEST_F(GateTest, LongBodiesPassBothWaysUnchanged) {
  const std::string sent = pattern(5 << 20);
  start(Instance::replying([](const Answer& request, const wire::Head& head) {
    if (head.target == "/chunked")
      return fmt::format("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
                         request.body.size(), request.body);
    return Instance::ok(request.body);
  }));
  auto exchange = [](World& w, const std::string& text) -> Co<Answer> {
    auto client = co_await w.connect();
    asio::co_spawn(w.io, client->send(text), asio::detached);
    Answer answer = co_await client->message();
    co_return answer;
  };
  EXPECT_TRUE(world.run(exchange(world, World::post(sent))).body == sent);
  const std::string chunked = fmt::format(
      "PUT /chunked HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
      sent.size(), sent);
  EXPECT_TRUE(world.run(exchange(world, chunked)).body == sent);
}

TEST_F(GateTest, ASlowClientHoldsTheInstanceBackInsteadOfFillingMemory) {
  static constexpr std::size_t total = 256 << 20;  // far above what the kernel's socket buffers take
  start([](Talk& talk) -> Co<void> {
    co_await talk.message();
    std::string head = fmt::format("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", total);
    co_await talk.send(std::move(head));
    for (std::size_t left = total; left > 0; left -= 1 << 20) {
      std::string piece(1 << 20, 'x');
      if (!co_await talk.send(std::move(piece))) co_return;
    }
  });
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  world.run_until([&] { return instance->connections() == 1 && instance->talk(0).sent() > 0; });
  while (world.io.poll() > 0) {
  }
  EXPECT_LT(instance->talk(0).sent(), total / 2);
  client->reset();
  world.run_until([&] { return world.gate->counters().open == 0; });
}

TEST_F(GateTest, AClientThatWaitsForContinueGetsIt) {
  start(Instance::replying([](const Answer& request, const wire::Head& head) {
    EXPECT_EQ(wire::find(head.headers, "expect"), "");
    return Instance::ok(request.body);
  }));
  auto client = world.run(world.connect());
  world.run(client->send("POST / HTTP/1.1\r\nHost: site.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"));
  EXPECT_EQ(world.run(client->message()).status, 100);
  world.run(client->send("body"));
  EXPECT_EQ(world.run(client->message()).body, "body");
}

TEST_F(GateTest, AWebsocketBecomesATunnel) {
  start([](Talk& talk) -> Co<void> {
    if (!(co_await talk.message()).complete) co_return;  // a connection without a request, met once on a busy machine: not what this is about
    EXPECT_EQ(wire::find(talk.head().headers, "upgrade"), "websocket");
    EXPECT_EQ(wire::find(talk.head().headers, "sec-websocket-key"), "k");
    co_await talk.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nfirst");
    for (bool open = true; open && talk.input().size() < 4;) open = co_await talk.more();
    co_await talk.send("echo:" + talk.input());
  });
  auto client = world.run(world.connect());
  world.run(
      client->send("GET /ws HTTP/1.1\r\nHost: site.example\r\nConnection: Upgrade\r\nUpgrade: "
                   "websocket\r\nSec-WebSocket-Key: k\r\n\r\n"));
  const Answer answer = world.run(client->message());
  EXPECT_EQ(answer.status, 101);
  world.run(client->send("ping"));
  EXPECT_EQ(world.run(client->rest()), "firstecho:ping");
}

TEST_F(GateTest, AnotherUpgradeIsIgnored) {
  start(Instance::replying([](const Answer&, const wire::Head& head) {
    EXPECT_EQ(wire::find(head.headers, "upgrade"), "");
    return Instance::ok("plain");
  }));
  auto client = world.run(world.connect());
  world.run(
      client->send("GET / HTTP/1.1\r\nHost: site.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: "
                   "h2c\r\nHTTP2-Settings: x\r\n\r\n"));
  EXPECT_EQ(world.run(client->message()).body, "plain");
  world.run(client->send(World::get()));
  EXPECT_EQ(world.run(client->message()).body, "plain");
}

// ---- bad requests --------------------------------------------------------------------------------------------------

TEST_F(GateTest, ShapesThatTwoReadersUnderstandDifferentlyAreRefused) {
  start(Instance::replying(hello));
  const std::string post = "POST / HTTP/1.1\r\nHost: site.example\r\n";
  const std::vector<std::string> shapes{
      post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      post + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
      post + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
      post + "Content-Length: +4\r\n\r\nabcd",
      post + "Content-Length : 4\r\n\r\nabcd",
      post + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
      post + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
      post + "X: a\r\n folded\r\n\r\n",
      post + "X: a\nY: b\r\n\r\n",
      post + "Host: other.example\r\n\r\n",
      "GET / HTTP/1.1\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: site.example/x\r\n\r\n",
      "NONSENSE\r\n\r\n",
  };
  for (const std::string& shape : shapes) {
    auto client = world.run(world.connect());
    world.run(client->send(shape));
    const Answer answer = world.run(client->message());
    EXPECT_EQ(answer.status, 400) << shape;
    EXPECT_EQ(answer.header("connection"), "close") << shape;
    EXPECT_EQ(answer.header("x-yado-outcome"), "none") << shape;
  }
  EXPECT_EQ(instance->connections(), 0u);
}

TEST_F(GateTest, AnUnknownTransferCodingOrExpectationIsNotImplemented) {
  start(Instance::replying(hello));
  EXPECT_EQ(
      world.run(world.ask("POST / HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")).status,
      501);
  EXPECT_EQ(world.run(world.ask("POST / HTTP/1.1\r\nHost: site.example\r\nExpect: a miracle\r\n\r\n")).status, 501);
  EXPECT_EQ(world.run(world.ask("CONNECT site.example:80 HTTP/1.1\r\nHost: site.example\r\n\r\n")).status, 501);
}

TEST_F(GateTest, ALongHeadIsRefused) {
  Gate::Config config;
  config.limits.head_bytes = 1024;
  start(Instance::replying(hello), std::move(config));
  EXPECT_EQ(
      world.run(world.ask("GET / HTTP/1.1\r\nHost: site.example\r\nX: " + std::string(2000, 'x') + "\r\n\r\n")).status,
      431);
}

TEST_F(GateTest, AClientThatDoesNotFinishItsHeadIsToldSo) {
  Gate::Config config;
  config.limits.head_time = 20ms;
  start(Instance::replying(hello), std::move(config));
  EXPECT_EQ(world.run(world.ask("GET / HTTP/1.1\r\nHost: site.exa")).status, 408);
}

TEST_F(GateTest, AnIdleConnectionIsClosed) {
  Gate::Config config;
  config.limits.idle_time = 20ms;
  start(Instance::replying(hello), std::move(config));
  auto client = world.run(world.connect());
  EXPECT_EQ(world.run(client->rest()), "");
  EXPECT_EQ(client->end(), asio::error::eof);
}

TEST_F(GateTest, AConnectionToAnInstanceThatNobodyNeededForAWhileIsClosed) {
  Gate::Config config;
  config.limits.kept_time = 20ms;
  start(Instance::replying(hello), std::move(config));
  auto client = world.run(world.connect());
  world.run(client->send(World::get()));
  EXPECT_EQ(world.run(client->message()).status, 200);
  world.run_until([&] { return instance->talk(0).end() == asio::error::eof; });
  world.run(client->send(World::get()));
  EXPECT_EQ(world.run(client->message()).status, 200);
  EXPECT_EQ(instance->connections(), 2u);
}

TEST_F(GateTest, MoreConnectionsThanAllowedWaitForOneToEnd) {
  Gate::Config config;
  config.limits.connections = 1;
  start(Instance::replying(hello), std::move(config));
  auto first = world.run(world.connect());
  world.run(first->send(World::get()));
  world.run(first->message());
  auto second = world.run(world.connect());
  world.run(second->send(World::get("/2")));
  while (world.io.poll() > 0) {
  }
  EXPECT_EQ(world.gate->counters().connections, 1u);
  first->reset();
  EXPECT_EQ(world.run(second->message()).body, "hello /2");
}

TEST_F(GateTest, AHostNameThatNobodyServesIsNotFound) {
  start(Instance::replying(hello));
  const Answer answer = world.run(world.ask(World::get("/", "nobody.example")));
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(answer.header("x-yado-outcome"), "none");
  const auto body = api::parse_json(answer.body);
  ASSERT_TRUE(body);
  EXPECT_EQ((*body)["outcome"], "none");
  EXPECT_EQ((*body)["error"]["code"], "not-found");
  EXPECT_NE((*body)["error"]["message"].get<std::string>().find("nobody.example"), std::string::npos);
}

}  // namespace
}  // namespace yado::gate
