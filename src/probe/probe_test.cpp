#include "probe/probe.hpp"

#include <array>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <gtest/gtest.h>

#include "wire/run.hpp"

namespace yado::probe {
namespace {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr nanoseconds generous = 20s;  // for answers that come at once; only a hang is cut off by it

/// A listener that gives every connection the same answer after its first bytes; an empty one: none.
class FixedServer {
 public:
  FixedServer(asio::io_context& io, std::string answer)
      : acceptor_(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0)), answer_(std::move(answer)) {
    asio::co_spawn(io, accept(), asio::detached);
  }
  Endpoint at() const { return Endpoint{"127.0.0.1", acceptor_.local_endpoint().port()}; }
  const std::string& asked() const { return asked_; }

 private:
  asio::awaitable<void> accept() {
    for (;;) {
      auto [error, socket] = co_await acceptor_.async_accept(asio::as_tuple(asio::use_awaitable));
      if (error) co_return;
      std::array<char, 4096> buffer{};
      auto [failed, bytes] =
          co_await socket.async_read_some(asio::buffer(buffer), asio::as_tuple(asio::use_awaitable));
      if (failed) continue;
      asked_.assign(buffer.data(), bytes);
      if (answer_.empty()) {
        open_.push_back(std::move(socket));
        continue;
      }
      co_await asio::async_write(socket, asio::buffer(answer_), asio::as_tuple(asio::use_awaitable));
    }
  }

  tcp::acceptor acceptor_;
  std::string answer_;
  std::string asked_;
  std::vector<tcp::socket> open_;
};

/// A port on which nobody listens.
Endpoint closed_port(asio::io_context& io) {
  tcp::acceptor acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  return Endpoint{"127.0.0.1", acceptor.local_endpoint().port()};
}

TEST(ReachTest, AnAddressThatIsNoneIsSaidToBeNone) {
  asio::io_context io;
  const auto reached = wire::run(io, reach(io, Endpoint{"host.example", 80}, generous));
  ASSERT_FALSE(reached);
  EXPECT_EQ(reached.error().code, Errc::invalid_argument);
  EXPECT_EQ(wire::run(io, reach(io, Endpoint{"127.0.0.1", 0}, generous)).error().code, Errc::invalid_argument);
}

TEST(ReachTest, ARefusalIsAnAnswerOfALivingMachine) {
  asio::io_context io;
  EXPECT_EQ(wire::run(io, reach(io, closed_port(io), generous)), Heard::refused);
}

TEST(ReachTest, AListenerAnswersAlsoWhenItsApplicationNeverAccepts) {
  asio::io_context io;
  tcp::acceptor acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  EXPECT_EQ(wire::run(io, reach(io, Endpoint{"127.0.0.1", acceptor.local_endpoint().port()}, generous)),
            Heard::listening);
}

TEST(ReachTest, SilenceEndsAtTheCallersLimit) {
  asio::io_context io;
  // A full backlog drops further SYNs: as silent as a dead machine, without leaving the loopback.
  tcp::acceptor acceptor(io);
  acceptor.open(tcp::v4());
  acceptor.bind(tcp::endpoint(asio::ip::address_v4::loopback(), 0));
  acceptor.listen(0);
  tcp::socket first(io), second(io);
  first.connect(acceptor.local_endpoint());
  second.async_connect(acceptor.local_endpoint(), [](error_code) {});
  const auto reached = wire::run(io, reach(io, Endpoint{"127.0.0.1", acceptor.local_endpoint().port()}, 30ms));
  ASSERT_FALSE(reached);
  EXPECT_EQ(reached.error().code, Errc::timed_out);
}

TEST(ReadyTest, ARefusedConnectionIsSaidAtOnce) {
  asio::io_context io;
  const Status result = wire::run(io, ready(io, closed_port(io), "site", Readiness{}, generous));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::refused);
}

TEST(ReadyTest, AnotherStatusIsNamedWithTheBeginningOfTheAnswer) {
  asio::io_context io;
  FixedServer server(io, "HTTP/1.1 500 no\r\ncontent-length: 14\r\n\r\nno\ndatabase :(");
  const Status result = wire::run(io, ready(io, server.at(), "site", Readiness{}, generous));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::application);
  EXPECT_NE(result.error().message.find("answered 500 instead of 200"), std::string::npos);
  EXPECT_NE(result.error().message.find("no database :("), std::string::npos);
}

TEST(ReadyTest, AnEmptyPageIsNotReadyHoweverGoodItsStatus) {
  asio::io_context io;
  FixedServer server(io, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
  Readiness readiness;
  readiness.contains = "Welcome";
  const Status result = wire::run(io, ready(io, server.at(), "site", readiness, generous));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::application);
  EXPECT_NE(result.error().message.find("the body is empty"), std::string::npos);
}

TEST(ReadyTest, AServerThatDoesNotAnswerEndsAtTheCallersLimit) {
  asio::io_context io;
  FixedServer server(io, "");
  const Status result = wire::run(io, ready(io, server.at(), "site", Readiness{}, 30ms));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::timed_out);
}

TEST(ReadyTest, StatusAndContentTogetherAreReady) {
  asio::io_context io;
  FixedServer server(io, "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n<h1>Welcome</");
  Readiness readiness;
  readiness.path = "/health?deep=1";
  readiness.contains = "Welcome";
  const Status result = wire::run(io, ready(io, server.at(), "site.example", readiness, generous));
  ASSERT_TRUE(result) << result.error().text();
  EXPECT_TRUE(server.asked().starts_with("GET /health?deep=1 HTTP/1.1\r\n")) << server.asked();
  EXPECT_NE(server.asked().find("host: site.example\r\n"), std::string::npos) << server.asked();
}

}  // namespace
}  // namespace yado::probe
