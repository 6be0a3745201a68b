#include "wire/server.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fstream>
#include <set>
#include <stdexcept>

#include "wire/listen.hpp"
#include "wire/peers_test.hpp"

namespace yado::wire {
namespace {

namespace asio = boost::asio;

class ServerTest : public WireTest {
 protected:
  std::unique_ptr<Server> serve(Server::Handler handler, Server::Limits limits = {}) {
    auto server = std::make_unique<Server>(io, std::move(handler), limits);
    auto listening = server->listen_unix(path("s"), 0600);
    EXPECT_TRUE(listening) << listening.error().text();
    return server;
  }
  Client client() { return Client::unix_socket(io, path("s")); }

  /// Sends `bytes`, ends sending, and returns all that comes back.
  std::string exchange(std::string bytes) { return run(exchange_bytes(io, path("s"), std::move(bytes))); }
  static asio::awaitable<std::string> exchange_bytes(asio::io_context& io, std::string path, std::string bytes) {
    RawPeer peer = co_await RawPeer::connect(io, std::move(path));
    co_await peer.send(bytes);
    peer.shutdown_send();
    co_return co_await peer.read_all();
  }
};

/// Answers with what was asked.
asio::awaitable<void> echo(const Request& request, Responder& out) {
  Response response;
  response.headers.emplace_back("x-asked", request.method + " " + request.target + " " + request.peer);
  response.body = request.body;
  auto sent = co_await out.respond(std::move(response));
  (void)sent;
}

TEST_F(ServerTest, RefusesBadRequestsWithAStatusAndCloses) {
  Server::Limits limits;
  limits.head_bytes = 4096;
  limits.body_bytes = 1000;
  auto server = serve(echo, limits);
  const std::string host = "POST / HTTP/1.1\r\nHost: a\r\n";
  for (const auto& [request, status] : std::vector<std::pair<std::string, std::string>>{
           {host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
           {host + "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", "400"},
           {host + "Transfer-Encoding: gzip\r\n\r\n", "501"},
           {host + "X: " + std::string(5000, 'a') + "\r\n\r\n", "431"},
           {host + "Content-Length: 1001\r\n\r\n" + std::string(1001, 'a'), "413"},
           {host + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + std::string(1001, 'a') + "\r\n0\r\n\r\n", "413"},
           {"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "501"},
           {"nonsense\r\n\r\n", "400"}}) {
    const std::string answer = exchange(request);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 " + status)) << request.substr(0, 100) << "\n-> " << answer;
    EXPECT_NE(answer.find("connection: close"), std::string::npos);
  }
}

TEST_F(ServerTest, TellsTheClientThatItsLongBodyIsTooLong) {
  Server::Limits limits;
  limits.body_bytes = 1000;
  auto server = serve(echo, limits);
  auto to = client();
  auto response = call(to, post("/", std::string(5'000'000, 'a')));
  ASSERT_TRUE(response) << response.error().text();
  EXPECT_EQ(response->status, 413);
  EXPECT_EQ(call(to, get("/after"))->status, 200);
}

asio::awaitable<void> misbehave(const Request& request, Responder& out) {
  Headers headers;
  if (request.target == "/throws") throw std::runtime_error("a defect");
  if (request.target == "/injects") {
    Response response;
    response.headers.emplace_back("x-name", "a\r\nx-injected: b");
    auto sent = co_await out.respond(std::move(response));
    EXPECT_FALSE(sent);
    co_return;
  }
  if (request.target == "/silent") {
    auto early = co_await out.write("before start()");
    EXPECT_FALSE(early);
    co_return;
  }
  if (request.target == "/short" || request.target == "/long") headers.emplace_back("content-length", "10");
  auto status = co_await out.start(200, std::move(headers));
  EXPECT_TRUE(status);
  status = co_await out.write("hello");
  EXPECT_TRUE(status);
  if (request.target == "/long") {
    status = co_await out.write("hello world");
    EXPECT_FALSE(status) << "more than was announced";
  }
  if (request.target == "/throws-later") throw std::runtime_error("a defect");
  if (request.target == "/aborts") out.abort();
}

TEST_F(ServerTest, AHandlerThatFailsNeverLooksLikeSuccess) {
  auto server = serve(misbehave);
  auto to = client();
  testing::internal::CaptureStderr();
  for (const char* target : {"/throws", "/injects", "/silent"}) {
    auto response = call(to, get(target));
    ASSERT_TRUE(response) << target << ": " << response.error().text();
    EXPECT_EQ(response->status, 500) << target;
    EXPECT_TRUE(find(response->headers, "x-injected").empty());
  }
  for (const char* target : {"/throws-later", "/aborts", "/short", "/long"}) {
    auto response = call(to, get(target));
    ASSERT_FALSE(response) << target;
    EXPECT_EQ(response.error().code, Errc::unavailable) << target;
  }
  EXPECT_NE(testing::internal::GetCapturedStderr().find("a defect"), std::string::npos);
}

TEST_F(ServerTest, AnswersPipelinedRequestsInOrderOnOneConnection) {
  auto server = serve(echo);
  std::string requests;
  for (int i = 0; i < 300; ++i)
    requests += fmt::format("POST /{} HTTP/1.1\r\nHost: a\r\nContent-Length: 400\r\n\r\n{:0>400}", i, i);
  requests += "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
  const std::string answers = exchange(requests);
  std::size_t at = 0;
  for (int i = 0; i < 300; ++i) {
    at = answers.find(fmt::format("x-asked: POST /{} local\r\n", i), at);
    ASSERT_NE(at, std::string::npos) << i;
  }
  EXPECT_NE(answers.find("GET /last", at), std::string::npos);
}

asio::awaitable<void> two_requests(asio::io_context& io, std::string path) {
  RawPeer peer = co_await RawPeer::connect(io, path);
  for (const char* name : {"/1", "/2"}) {
    const std::string request = fmt::format("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", name);
    co_await peer.send(request);
    const std::string head = co_await peer.read_until("\r\n\r\n");
    EXPECT_NE(head.find(name), std::string::npos) << head;
    EXPECT_EQ(head.find("connection: close"), std::string::npos);
  }
}

TEST_F(ServerTest, KeepsTheConnection) {
  auto server = serve(echo);
  run(two_requests(io, path("s")));
}

TEST_F(ServerTest, SpeaksToOldClientsAndAnswersHeadWithoutABody) {
  auto server = serve(misbehave);
  const std::string old = exchange("GET /chunks HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.find("chunked"), std::string::npos);
  EXPECT_TRUE(old.ends_with("\r\n\r\nhello")) << old;
  const std::string head = exchange("HEAD /chunks HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(head.ends_with("\r\n\r\n")) << head;
  const std::string counted = exchange("HEAD /short HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_NE(counted.find("content-length: 10\r\n"), std::string::npos);
  EXPECT_TRUE(counted.ends_with("\r\n\r\n")) << counted;
}

asio::awaitable<void> ask_before_sending(asio::io_context& io, std::string path) {
  RawPeer peer = co_await RawPeer::connect(io, path);
  co_await peer.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
  const std::string go = co_await peer.read_until("\r\n\r\n");
  EXPECT_EQ(go, "HTTP/1.1 100 Continue\r\n\r\n");
  co_await peer.send("hello");
  const std::string answer = co_await peer.read_until("hello");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
}

TEST_F(ServerTest, TellsAClientThatAsksFirstToGoOn) {
  auto server = serve(echo);
  run(ask_before_sending(io, path("s")));
}

/// What a suspended handler saw.
struct Watch {
  asio::steady_timer timer;
  bool started = false, told = false, closed = false, write_failed = false, canceled = false;
  explicit Watch(asio::io_context& io) : timer(io, asio::steady_timer::time_point::max()) {}
};

asio::awaitable<void> wait_in_stream(Watch& watch, Responder& out) {
  auto status = co_await out.start(200, {});
  EXPECT_TRUE(status);
  status = co_await out.write("first");
  EXPECT_TRUE(status);
  out.on_closed([&watch] {
    watch.told = true;
    watch.timer.cancel();
  });
  watch.started = true;
  try {
    co_await watch.timer.async_wait(asio::as_tuple(asio::use_awaitable));
    watch.closed = out.closed();
    status = co_await out.write("to nobody");
    watch.write_failed = !status;
  } catch (const boost::system::system_error&) {
    watch.canceled = true;
    throw;
  }
}

TEST_F(ServerTest, NoticesThatThePeerLeftWhileAHandlerIsSuspended) {
  Watch watch(io);
  const Server::Handler handler = [&](const Request&, Responder& out) { return wait_in_stream(watch, out); };
  auto server = serve(handler);
  auto to = client();
  const auto sink = [](std::string_view piece) -> Status { return fail(Errc::canceled, "had enough at {}", piece); };
  auto response = run(to.stream(get("/"), patience, patience, sink));
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().code, Errc::canceled);
  settle();
  EXPECT_TRUE(watch.told);
  EXPECT_TRUE(watch.closed);
  EXPECT_TRUE(watch.write_failed);
}

TEST_F(ServerTest, StopEndsSuspendedHandlersAndLeavesNoWork) {
  Watch watch(io);
  const Server::Handler handler = [&](const Request&, Responder& out) { return wait_in_stream(watch, out); };
  auto server = serve(handler);
  auto to = client();
  Result<Response> response;
  const auto sink = [&](std::string_view) -> Status {
    asio::post(io, [&] { server->stop(); });
    return {};
  };
  response = run(to.stream(get("/"), patience, patience, sink));
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().code, Errc::unavailable);
  io.restart();
  io.run();  // hangs if anything is left
  EXPECT_TRUE(watch.started);
  EXPECT_TRUE(watch.told);
  EXPECT_TRUE(watch.canceled || watch.write_failed);
  EXPECT_FALSE(std::filesystem::exists(path("s"))) << "the socket file is gone";
  auto late = server->listen_unix(path("s"), 0600);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::canceled);
}

asio::awaitable<void> wait_forever(asio::steady_timer& timer, bool& canceled) {
  try {
    co_await timer.async_wait(asio::use_awaitable);
  } catch (const boost::system::system_error& error) {
    canceled = error.code() == asio::error::operation_aborted;
    throw;
  }
}

TEST_F(ServerTest, StopCancelsAHandlerThatWaitsForSomethingElse) {
  asio::steady_timer never(io, asio::steady_timer::time_point::max());
  asio::steady_timer soon(io);
  bool canceled = false;
  std::unique_ptr<Server> server;
  server = serve([&](const Request&, Responder&) {
    asio::post(io, [&] { server->stop(); });
    return wait_forever(never, canceled);
  });
  auto to = client();
  EXPECT_FALSE(call(to, get("/")));
  io.restart();
  io.run();
  EXPECT_TRUE(canceled);
}

TEST_F(ServerTest, AHalfClosedPeerStillGetsItsAnswer) {
  auto server = serve(echo);
  EXPECT_TRUE(exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
}

TEST_F(ServerTest, ASocketFileIsReplacedOnlyWhenNobodyServesIt) {
  auto server = serve(echo);
  struct stat found {};
  ASSERT_EQ(::stat(path("s").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);

  Server second(io, echo, {});
  auto refused = second.listen_unix(path("s"), 0600);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::already_exists);
  EXPECT_NE(refused.error().message.find("running process"), std::string::npos);

  std::ofstream(path("file")) << "precious";
  refused = second.listen_unix(path("file"), 0600);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::already_exists);
  EXPECT_TRUE(std::filesystem::is_regular_file(path("file")));

  EXPECT_EQ(second.listen_unix(path(std::string(200, 'a')), 0600).error().code, Errc::invalid_argument);
  EXPECT_EQ(second.listen_unix(path("no/such/dir"), 0600).error().code, Errc::not_found);

  {
    auto dead = make_unix_listener(path("stale"), 0600);
    ASSERT_TRUE(dead);
  }
  ASSERT_TRUE(std::filesystem::exists(path("stale")));
  auto replaced = second.listen_unix(path("stale"), 0666);
  ASSERT_TRUE(replaced) << replaced.error().text();
  ASSERT_EQ(::stat(path("stale").c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0666u) << "whatever the umask";
  auto to = Client::unix_socket(io, path("stale"));
  EXPECT_TRUE(call(to, get("/")));
}

std::set<int> descriptors_for_children() {
  std::set<int> open;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename());
    if (const int flags = ::fcntl(fd, F_GETFD); flags >= 0 && (flags & FD_CLOEXEC) == 0) open.insert(fd);
  }
  return open;
}

TEST_F(ServerTest, NoConnectionIsInheritedByProgramsThatTheProcessStarts) {
  const std::set<int> before = descriptors_for_children();
  std::set<int> during;
  const Server::Handler handler = [&](const Request& request, Responder& out) {
    during = descriptors_for_children();
    return echo(request, out);
  };
  auto server = serve(handler);
  auto to = client();
  ASSERT_TRUE(call(to, get("/")));
  EXPECT_EQ(during, before);
}

TEST_F(ServerTest, TakesAListenerThatSomebodyElseMade) {
  auto made = make_unix_listener(path("s"), 0600);
  ASSERT_TRUE(made);
  Server server(io, echo, {});
  auto listening = server.listen_unix(std::move(made->socket));
  ASSERT_TRUE(listening) << listening.error().text();
  auto to = client();
  EXPECT_TRUE(call(to, get("/")));
  server.stop();
  EXPECT_TRUE(std::filesystem::exists(path("s"))) << "not ours to remove";

  Server other(io, echo, {});
  os::Fd unbound(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(other.listen_unix(std::move(unbound)).error().code, Errc::invalid_argument);
  auto tcp = make_tcp_listener("127.0.0.1", 0);
  ASSERT_TRUE(tcp);
  EXPECT_EQ(other.listen_unix(std::move(*tcp)).error().code, Errc::invalid_argument);
}

}  // namespace
}  // namespace yado::wire
