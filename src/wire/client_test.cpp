#include "wire/client.hpp"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "wire/listen.hpp"
#include "wire/peers_test.hpp"

namespace yado::wire {
namespace {

namespace asio = boost::asio;

constexpr std::string_view ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

class ClientTest : public WireTest {
 protected:
  Client client() { return Client::unix_socket(io, path("s")); }
  Errc code_of(const Result<Response>& response) {
    EXPECT_FALSE(response);
    return response ? Errc::internal : response.error().code;
  }
};

TEST_F(ClientTest, RefusedMeansThatNobodyListens) {
  auto to = client();
  auto missing = call(to, get("/x"));
  EXPECT_EQ(code_of(missing), Errc::refused);
  EXPECT_NE(missing.error().message.find("GET /x at " + path("s")), std::string::npos) << missing.error().message;
  {
    auto dead = make_unix_listener(path("s"), 0600);
    ASSERT_TRUE(dead);
  }
  EXPECT_EQ(code_of(call(to, get("/"))), Errc::refused) << "a stale socket file";

  std::uint16_t port = 0;
  {
    auto listener = make_tcp_listener("127.0.0.1", 0);
    ASSERT_TRUE(listener);
    port = *check_listener(*listener, true);
  }
  auto tcp = Client::plain(io, "127.0.0.1", port);
  EXPECT_EQ(code_of(call(tcp, get("/"))), Errc::refused);
  auto nowhere = Client::plain(io, "no.such.name", 1);
  EXPECT_EQ(code_of(call(nowhere, get("/"))), Errc::invalid_argument);
  auto too_long = Client::unix_socket(io, path(std::string(200, 'a')));
  EXPECT_EQ(code_of(call(too_long, get("/"))), Errc::invalid_argument);
}

TEST_F(ClientTest, WhatIsNoRequestIsNotSent) {
  RawServer server(io, path("s"), [](RawPeer& peer, int) -> asio::awaitable<void> {
    const std::string got = co_await peer.read_all();
    EXPECT_EQ(got, "");
  });
  auto to = client();
  for (auto request : {get("no slash"), get("/a b"), get("/a\r\nX: y"), get("/\xc3\xa4")})
    EXPECT_EQ(code_of(call(to, request)), Errc::invalid_argument) << request.target;
  Request method = get("/");
  method.method = "GET /";
  EXPECT_EQ(code_of(call(to, method)), Errc::invalid_argument);
  Request header = get("/");
  header.headers.emplace_back("x", "a\r\ny: b");
  EXPECT_EQ(code_of(call(to, header)), Errc::invalid_argument);
  Request name = get("/");
  name.headers.emplace_back("x y", "a");
  EXPECT_EQ(code_of(call(to, name)), Errc::invalid_argument);
}

TEST_F(ClientTest, ATimedOutCallClosesItsConnection) {
  std::string after_request = "not ended";
  RawServer server(io, path("s"), [&](RawPeer& peer, int) -> asio::awaitable<void> {
    co_await peer.read_until("\r\n\r\n");
    after_request = co_await peer.read_all();
  });
  auto to = client();
  auto response = run(to.call(get("/"), 5ms));
  EXPECT_EQ(code_of(response), Errc::timed_out);
  settle();
  EXPECT_EQ(after_request, "") << "the server saw the end";
}

TEST_F(ClientTest, AServerThatGoesMidAnswerIsUnavailableAndNonsenseIsCorrupt) {
  const std::vector<std::pair<std::string, Errc>> answers{
      {"", Errc::unavailable},
      {"HTTP/1.1 200", Errc::unavailable},
      {"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Errc::unavailable},
      {"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Errc::unavailable},
      {"SSH-2.0-OpenSSH_9.2\r\n", Errc::corrupt},
      {"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", Errc::corrupt},
      {"HTTP/1.1 200 OK\r\nx: " + std::string(70'000, 'a') + "\r\n\r\n", Errc::corrupt},
  };
  RawServer server(io, path("s"), [&](RawPeer& peer, int number) -> asio::awaitable<void> {
    co_await peer.read_until("\r\n\r\n");
    co_await peer.send(answers[static_cast<std::size_t>(number - 1)].first);
  });
  auto to = client();
  for (const auto& [answer, code] : answers) EXPECT_EQ(code_of(call(to, get("/"))), code) << answer.substr(0, 100);
  EXPECT_EQ(server.connections(), static_cast<int>(answers.size())) << "a new connection's failure is not repeated";
}

TEST_F(ClientTest, AKeptConnectionThatTheServerClosedIsReplaced) {
  RawServer server(io, path("s"), [](RawPeer& peer, int) -> asio::awaitable<void> {
    co_await peer.read_until("\r\n\r\n");
    co_await peer.send(ok);  // and closes, without having said so
  });
  auto to = client();
  for (int i = 1; i <= 3; ++i) {
    auto response = call(to, post("/", ""));
    EXPECT_TRUE(response) << response.error().text();
    settle();
    EXPECT_EQ(server.connections(), i);
  }
}

TEST_F(ClientTest, OnlyHarmlessCallsAreRepeatedWhenTheCloseCrossesTheRequest) {
  // Every odd connection answers once and closes on the second request; the one that replaces it goes on.
  RawServer server(io, path("s"), [](RawPeer& peer, int number) -> asio::awaitable<void> {
    const int answers = number % 2 == 1 ? 1 : 2;
    for (int i = 0; i < answers; ++i) {
      co_await peer.read_until("\r\n\r\n");
      co_await peer.send(ok);
    }
    co_await peer.read_until("\r\n\r\n");
  });
  Request with_id = post("/", "");
  with_id.headers.emplace_back("x-request-id", "1");
  for (const auto& [request, repeatable] : {std::pair{get("/"), true}, {with_id, true}, {post("/", ""), false}}) {
    auto to = client();
    ASSERT_EQ(server.connections() % 2, 0) << "the next connection is one that closes";
    EXPECT_TRUE(call(to, get("/")));
    auto response = call(to, request);
    EXPECT_EQ(response.has_value(), repeatable) << request.method;
    if (!response) {
      EXPECT_EQ(response.error().code, Errc::unavailable);
    }
  }
}

TEST_F(ClientTest, SkipsInterimAnswersAndReadsOneThatEndsWithTheConnection) {
  RawServer server(io, path("s"), [](RawPeer& peer, int) -> asio::awaitable<void> {
    co_await peer.read_until("\r\n\r\n");
    co_await peer.send("HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 202 Accepted\r\nx: y\r\n\r\nto the end");
  });
  auto to = client();
  auto response = call(to, get("/"));
  ASSERT_TRUE(response) << response.error().text();
  EXPECT_EQ(response->status, 202);
  EXPECT_EQ(response->body, "to the end");
  EXPECT_EQ(find(response->headers, "x"), "y");
}

/// A server for the rest: what it does is in the target.
asio::awaitable<void> serve(const Request& request, Responder& out) {
  if (request.target == "/chunks") {
    auto status = co_await out.start(200, {});
    for (int i = 0; i < 100 && status; ++i)
      status = co_await out.write(std::string(100'000, static_cast<char>('a' + i % 26)));
    EXPECT_TRUE(status);
    co_return;
  }
  if (request.target == "/stalls") {
    auto status = co_await out.start(200, {});
    status = co_await out.write("first");
    asio::steady_timer never(co_await asio::this_coro::executor, asio::steady_timer::time_point::max());
    out.on_closed([&never] { never.cancel(); });
    co_await never.async_wait(asio::as_tuple(asio::use_awaitable));
    co_return;
  }
  Response response;
  response.status = request.target == "/missing" ? 404 : 200;
  response.headers.emplace_back("x-length", std::to_string(request.body.size()));
  response.body = request.target == "/missing" ? "no such thing" : request.body;
  auto sent = co_await out.respond(std::move(response));
  EXPECT_TRUE(sent);
}

class ServedClientTest : public ClientTest {
 protected:
  ServedClientTest() : server(io, serve, {}) { EXPECT_TRUE(server.listen_unix(path("s"), 0600)); }
  Server server;
};

TEST_F(ServedClientTest, CarriesBigBodiesBothWays) {
  auto to = client();
  const std::string body(8'000'000, 'x');
  auto response = call(to, post("/echo", body));
  ASSERT_TRUE(response) << response.error().text();
  EXPECT_TRUE(response->body == body);
}

TEST_F(ServedClientTest, StreamsABodyOfUnknownLength) {
  auto to = client();
  std::uint64_t bytes = 0, pieces = 0;
  auto response = run(to.stream(get("/chunks"), patience, patience, [&](std::string_view piece) -> Status {
    bytes += piece.size();
    ++pieces;
    return {};
  }));
  ASSERT_TRUE(response) << response.error().text();
  EXPECT_EQ(bytes, 10'000'000u);
  EXPECT_GT(pieces, 100u);
  EXPECT_EQ(response->body, "");
}

TEST_F(ServedClientTest, AStreamThatFallsSilentTimesOutAndAnErrorsBodyIsNotStreamed) {
  auto to = client();
  std::string got;
  const auto sink = [&](std::string_view piece) -> Status {
    got += piece;
    return {};
  };
  auto stalled = run(to.stream(get("/stalls"), patience, 5ms, sink));
  EXPECT_EQ(code_of(stalled), Errc::timed_out);
  EXPECT_EQ(got, "first");
  auto missing = run(to.stream(get("/missing"), patience, patience, sink));
  ASSERT_TRUE(missing);
  EXPECT_EQ(missing->status, 404);
  EXPECT_EQ(missing->body, "no such thing");
  EXPECT_EQ(got, "first");
}

TEST_F(ServedClientTest, UploadsPieceByPieceAndHoldsTheSourceToItsLength) {
  auto to = client();
  std::uint64_t left = 5'000'000;
  const auto source = [&]() -> Result<std::string> {
    const auto now = std::min<std::uint64_t>(left, 64 * 1024);
    left -= now;
    return std::string(now, 'a');
  };
  auto response = run(to.upload(post("/up", ""), 5'000'000, patience, source));
  ASSERT_TRUE(response) << response.error().text();
  EXPECT_EQ(find(response->headers, "x-length"), "5000000");

  for (std::uint64_t announced : {1000u, 2000u}) {
    left = 1500;
    EXPECT_EQ(code_of(run(to.upload(post("/up", ""), announced, patience, source))), Errc::invalid_argument);
  }
  const auto broken = []() -> Result<std::string> { return fail(Errc::io, "the disk"); };
  EXPECT_EQ(code_of(run(to.upload(post("/up", ""), 10, patience, broken))), Errc::io);
  left = 0;
  EXPECT_TRUE(run(to.upload(post("/up", ""), 0, patience, source)));
}

TEST_F(ServedClientTest, ManyCallsAtOnceHaveAConnectionEachAndFewAreKept) {
  const auto descriptors = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
  };
  asio::steady_timer gate(io, asio::steady_timer::time_point::max());
  int waiting = 0, answered = 0;
  constexpr int calls = 60;
  const Server::Handler gather = [&](const Request&, Responder& out) -> asio::awaitable<void> {
    if (++waiting == calls) gate.cancel();  // only then does anybody get an answer: all are under way at once
    if (waiting < calls) co_await gate.async_wait(asio::as_tuple(asio::use_awaitable));
    Response response;
    auto sent = co_await out.respond(std::move(response));
    EXPECT_TRUE(sent);
  };
  Server server_of_many(io, gather, {});
  ASSERT_TRUE(server_of_many.listen_unix(path("many"), 0600));
  auto to = Client::unix_socket(io, path("many"));
  const auto before = descriptors();
  for (int i = 0; i < calls; ++i)
    asio::co_spawn(io, to.call(get("/"), patience), [&](std::exception_ptr thrown, Result<Response> response) {
      EXPECT_FALSE(thrown);
      EXPECT_TRUE(response) << response.error().text();
      ++answered;
    });
  io.restart();
  while (answered < calls && io.run_one() > 0) {
  }
  EXPECT_EQ(answered, calls);
  settle();
  EXPECT_LE(descriptors() - before, 2 * 8) << "both ends of the idle connections";
  EXPECT_GT(descriptors() - before, 0) << "some are kept";
}

TEST_F(ServedClientTest, ACallGoesOnWhenItsClientIsDestroyedOrMoved) {
  auto to = std::make_unique<Client>(client());
  auto under_way = to->call(get("/"), patience);
  Client moved = std::move(*to);
  to.reset();
  EXPECT_TRUE(run(std::move(under_way)));
  EXPECT_TRUE(call(moved, get("/")));
}

TEST_F(ServedClientTest, ACanceledCallSaysSo) {
  auto to = client();
  asio::cancellation_signal cancel;
  Result<Response> outcome;
  bool done = false;
  asio::co_spawn(io, to.call(get("/stalls"), patience),
                 asio::bind_cancellation_slot(cancel.slot(), [&](std::exception_ptr thrown, Result<Response> response) {
                   EXPECT_FALSE(thrown);
                   outcome = std::move(response);
                   done = true;
                 }));
  settle();
  ASSERT_FALSE(done);
  cancel.emit(asio::cancellation_type::terminal);
  settle();
  ASSERT_TRUE(done);
  EXPECT_EQ(code_of(outcome), Errc::canceled);
}

}  // namespace
}  // namespace yado::wire
