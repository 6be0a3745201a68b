#include "wire/tls.hpp"

#include <sys/stat.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <fstream>
#include <sstream>

#include "wire/listen.hpp"
#include "wire/peers_test.hpp"

namespace yado::wire {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;

class AuthorityTest : public WireTest {};

std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

unsigned mode_of(const std::string& path) {
  struct stat found {};
  EXPECT_EQ(::stat(path.c_str(), &found), 0) << path;
  return found.st_mode & 0777;
}

TEST_F(AuthorityTest, AHalfWrittenOneIsAnErrorThatNamesTheFileToRemove) {
  ASSERT_TRUE(Authority::open_or_create(path("ca")));
  for (const auto& [gone, left] : {std::pair{"ca.pem", "ca-key.pem"}, {"ca-key.pem", "ca.pem"}}) {
    const std::string saved = contents(path("ca") + "/" + gone);
    std::filesystem::remove(path("ca") + "/" + gone);
    auto opened = Authority::open_or_create(path("ca"));
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, Errc::corrupt);
    EXPECT_NE(opened.error().message.find("remove " + path("ca") + "/" + left), std::string::npos)
        << opened.error().message;
    std::ofstream(path("ca") + "/" + gone) << saved;
    std::filesystem::permissions(path("ca") + "/" + gone, std::filesystem::perms(0600));
    EXPECT_TRUE(Authority::open_or_create(path("ca")));
  }
}

TEST_F(AuthorityTest, ADamagedOrAnExposedOneIsRefused) {
  ASSERT_TRUE(Authority::open_or_create(path("ca")));
  ASSERT_TRUE(Authority::open_or_create(path("other")));
  const std::string key = path("ca/ca-key.pem");
  ASSERT_EQ(::chmod(key.c_str(), 0640), 0);
  EXPECT_EQ(Authority::open_or_create(path("ca")).error().code, Errc::permission);
  ASSERT_EQ(::chmod(key.c_str(), 0600), 0);
  std::filesystem::resize_file(path("ca/ca.pem"), 100);
  EXPECT_EQ(Authority::open_or_create(path("ca")).error().code, Errc::corrupt);
  std::filesystem::copy_file(path("other/ca.pem"), path("ca/ca.pem"),
                             std::filesystem::copy_options::overwrite_existing);
  auto mixed = Authority::open_or_create(path("ca"));
  ASSERT_FALSE(mixed);
  EXPECT_EQ(mixed.error().code, Errc::corrupt) << "another authority's certificate";
}

TEST_F(AuthorityTest, StaysTheSameAndKeepsItsKeyToItself) {
  auto made = Authority::open_or_create(path("ca"));
  ASSERT_TRUE(made) << made.error().text();
  EXPECT_EQ(mode_of(path("ca")), 0700u);
  EXPECT_EQ(mode_of(path("ca/ca-key.pem")), 0600u);
  auto opened = Authority::open_or_create(path("ca"));
  ASSERT_TRUE(opened);
  EXPECT_EQ(made->issue("a")->authority, opened->issue("b")->authority);
  EXPECT_NE(made->issue("a")->certificate, made->issue("a")->certificate) << "serials are random";
  EXPECT_EQ(made->issue("").error().code, Errc::invalid_argument);
  EXPECT_EQ(made->issue(std::string(65, 'a')).error().code, Errc::invalid_argument);
  EXPECT_TRUE(made->issue(std::string(64, 'a')));
}

TEST_F(AuthorityTest, AnIdentityIsSavedAndLoadedWhole) {
  auto authority = Authority::open_or_create(path("ca"));
  ASSERT_TRUE(authority);
  EXPECT_EQ(Identity::load(path("id")).error().code, Errc::not_found);
  auto identity = authority->issue("agent:h1");
  ASSERT_TRUE(identity);
  ASSERT_TRUE(identity->save(path("id")));
  ASSERT_TRUE(identity->save(path("id"))) << "again, over the old one";
  EXPECT_EQ(mode_of(path("id/key.pem")), 0600u);
  auto loaded = Identity::load(path("id"));
  ASSERT_TRUE(loaded) << loaded.error().text();
  EXPECT_EQ(loaded->certificate, identity->certificate);
  EXPECT_EQ(loaded->key, identity->key);
  EXPECT_EQ(loaded->authority, identity->authority);
  std::ofstream(path("id/cert.pem")) << authority->issue("agent:h2")->certificate;
  EXPECT_EQ(Identity::load(path("id")).error().code, Errc::corrupt) << "the key of another certificate";
  std::ofstream(path("id/cert.pem")) << "nonsense";
  EXPECT_EQ(Identity::load(path("id")).error().code, Errc::corrupt);
  EXPECT_FALSE(server_context(Identity{}));
}

/// Streams until its peer leaves, and says that it noticed.
asio::awaitable<void> until_closed(Responder& out, bool& write_failed) {
  auto status = co_await out.start(200, {});
  asio::steady_timer event(co_await asio::this_coro::executor, asio::steady_timer::time_point::max());
  out.on_closed([&event] { event.cancel(); });
  status = co_await out.write("first");
  co_await event.async_wait(asio::as_tuple(asio::use_awaitable));
  EXPECT_TRUE(out.closed());
  status = co_await out.write("to nobody");
  write_failed = !status;
}

asio::awaitable<void> who(const Request& request, Responder& out) {
  Response response;
  response.body = request.peer + " " + std::to_string(request.body.size());
  auto sent = co_await out.respond(std::move(response));
  (void)sent;
}

class TlsTest : public WireTest {
 protected:
  TlsTest() : server(io, who, {}) {
    authority = *Authority::open_or_create(path("ca"));
    stranger = *Authority::open_or_create(path("other-ca"));
    port = *server.listen_tls("127.0.0.1", 0, *authority.issue("agent:h2"));
  }
  Client client(const Identity& identity, std::string expected = "agent:h2") {
    return std::move(*Client::tls(io, "127.0.0.1", port, identity, std::move(expected)));
  }
  /// What the server logs while `work` runs and ends.
  template <class T>
  std::string log_of(T&& work) {
    testing::internal::CaptureStderr();
    work();
    settle();
    return testing::internal::GetCapturedStderr();
  }

  Server server;
  Authority authority, stranger;
  std::uint16_t port = 0;
};

TEST_F(TlsTest, BothSidesKnowEachOtherByName) {
  auto to = client(*authority.issue("control:c1"));
  for (int i = 0; i < 2; ++i) {
    auto response = call(to, post("/", std::string(3'000'000, 'a')));
    ASSERT_TRUE(response) << response.error().text();
    EXPECT_EQ(response->body, "control:c1 3000000");
  }
  auto any = client(*authority.issue("control:c1"), "agent:");
  EXPECT_TRUE(call(any, get("/")));
}

TEST_F(TlsTest, AnotherNameThanExpectedIsAnErrorThatSaysBoth) {
  for (const char* expected : {"agent:h3", "gate:", "agent:h", "agent"}) {
    auto to = client(*authority.issue("control:c1"), expected);
    auto response = call(to, get("/"));
    ASSERT_FALSE(response) << expected;
    EXPECT_EQ(response.error().code, Errc::permission);
    EXPECT_NE(response.error().message.find(fmt::format("\"agent:h2\", expected \"{}\"", expected)), std::string::npos)
        << response.error().message;
  }
}

TEST_F(TlsTest, AnotherAuthoritysCertificateIsRefusedByEitherSide) {
  // The server's certificate is not of the client's authority.
  auto wary = client(*stranger.issue("control:c1"));
  auto response = call(wary, get("/"));
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().code, Errc::permission);
  EXPECT_NE(response.error().message.find("certificate is not acceptable"), std::string::npos)
      << response.error().message;

  // The client trusts the server, and has a certificate that the server does not.
  Identity mixed = *stranger.issue("control:c1");
  mixed.authority = authority.issue("x")->authority;
  auto trusting = client(mixed);
  const std::string log = log_of([&] {
    auto refused = call(trusting, get("/"));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::permission) << refused.error().message;
    EXPECT_NE(refused.error().message.find("the peer refused"), std::string::npos) << refused.error().message;
  });
  EXPECT_NE(log.find("127.0.0.1"), std::string::npos) << log;
  EXPECT_NE(log.find("the peer's certificate is not acceptable"), std::string::npos) << log;
}

using RawTls = asio::ssl::stream<tcp::socket>;

asio::awaitable<std::string> bare_tls(asio::io_context& io, std::uint16_t port, asio::ssl::context& context) {
  RawTls stream(io, context);
  const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), port);
  co_await stream.next_layer().async_connect(endpoint, asio::use_awaitable);
  auto [failed] = co_await stream.async_handshake(RawTls::client, asio::as_tuple(asio::use_awaitable));
  if (failed) co_return failed.message();
  char byte = 0;
  auto [error, bytes] = co_await stream.async_read_some(asio::buffer(&byte, 1), asio::as_tuple(asio::use_awaitable));
  co_return error ? error.message() : "something was answered";
}

TEST_F(TlsTest, ClientsWithoutACertificateOrWithAnOldProtocolAreRefused) {
  asio::ssl::context nobody(asio::ssl::context::tls_client);
  std::string said;
  std::string log = log_of([&] { said = run(bare_tls(io, port, nobody)); });
  EXPECT_NE(said.find("certificate required"), std::string::npos) << said;
  EXPECT_NE(log.find("did not return a certificate"), std::string::npos) << log;

  asio::ssl::context old(asio::ssl::context::tls_client);
  old.set_options(asio::ssl::context::no_tlsv1_3);
  log = log_of([&] { said = run(bare_tls(io, port, old)); });
  EXPECT_NE(said.find("protocol version"), std::string::npos) << said;
  EXPECT_NE(log.find("unsupported protocol"), std::string::npos) << log;
}

asio::awaitable<void> plain_request(asio::io_context& io, std::uint16_t port) {
  tcp::socket socket(io);
  const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), port);
  co_await socket.async_connect(endpoint, asio::use_awaitable);
  const std::string_view text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  co_await asio::async_write(socket, asio::buffer(text), asio::use_awaitable);
  char bytes[1000];
  for (;;) {
    auto [error, got] = co_await socket.async_read_some(asio::buffer(bytes), asio::as_tuple(asio::use_awaitable));
    EXPECT_FALSE(std::string_view(bytes, got).starts_with("HTTP"));
    if (error) co_return;
  }
}

TEST_F(TlsTest, PlainHttpGetsNoAnswerAndALogLine) {
  const std::string log = log_of([&] { run(plain_request(io, port)); });
  EXPECT_NE(log.find("TLS handshake failed: http request"), std::string::npos) << log;
}

TEST_F(TlsTest, NoticesThatThePeerLeftWhileAHandlerIsSuspended) {
  bool write_failed = false;
  Server streaming(io, [&](const Request&, Responder& out) { return until_closed(out, write_failed); }, {});
  auto at = streaming.listen_tls("127.0.0.1", 0, *authority.issue("agent:h1"));
  ASSERT_TRUE(at);
  auto to = Client::tls(io, "127.0.0.1", *at, *authority.issue("control:c1"), "agent:h1");
  ASSERT_TRUE(to);
  const auto enough = [](std::string_view) -> Status { return fail(Errc::canceled, "had enough"); };
  EXPECT_FALSE(run(to->stream(get("/"), patience, patience, enough)));
  io.restart();
  while (!write_failed && io.run_one_for(patience) > 0) {
  }
  EXPECT_TRUE(write_failed);
}

TEST_F(TlsTest, ASilentHandshakeBlocksNobodyAndStopEndsIt) {
  tcp::socket silent(io);
  silent.connect(tcp::endpoint(asio::ip::address_v4::loopback(), port));
  settle();
  auto to = client(*authority.issue("control:c1"));
  EXPECT_TRUE(call(to, get("/")));
  server.stop();
  io.restart();
  io.run();  // hangs if the handshake is still waited for
}

TEST_F(TlsTest, TakesAListenerThatSomebodyElseMade) {
  auto listener = make_tcp_listener("127.0.0.1", 0);
  ASSERT_TRUE(listener);
  const std::uint16_t other_port = *check_listener(*listener, true);
  Server other(io, who, {});
  ASSERT_TRUE(other.listen_tls(std::move(*listener), *authority.issue("gate:g1")));
  auto to = Client::tls(io, "127.0.0.1", other_port, *authority.issue("agent:h1"), "gate:g1");
  ASSERT_TRUE(to);
  EXPECT_EQ(call(*to, get("/"))->body, "agent:h1 0");
  auto unix = make_unix_listener(path("s"), 0600);
  ASSERT_TRUE(unix);
  EXPECT_EQ(other.listen_tls(std::move(unix->socket), *authority.issue("gate:g1")).error().code,
            Errc::invalid_argument);
  auto taken = other.listen_tls("127.0.0.1", port, *authority.issue("gate:g1"));
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, Errc::already_exists);
  EXPECT_EQ(other.listen_tls("localhost", 0, *authority.issue("gate:g1")).error().code, Errc::invalid_argument);
}

}  // namespace
}  // namespace yado::wire
