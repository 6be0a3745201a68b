#include "wire/parser.hpp"

#include <gtest/gtest.h>

#include "base/units.hpp"

namespace yado::wire {
namespace {

using Event = Parser::Event;

/// What came of feeding a text: the events as letters (h b e), the body, what was left, and the refusal, if any.
struct Outcome {
  std::string events;
  std::string body;
  Head head;
  std::size_t left = 0;
  int refusal = 0;
  std::string why;
};

/// Feeds `text` in pieces of `piece` bytes until `ends` messages are over.
Outcome feed(Parser& parser, std::string_view text, std::size_t piece, int ends = 1) {
  Outcome outcome;
  std::string_view window = text.substr(0, 0);
  std::size_t at = 0;
  while (ends > 0) {
    auto step = parser.next(window);
    if (!step) {
      outcome.refusal = parser.refusal_status();
      outcome.why = step.error().message;
      break;
    }
    at += step->consumed;
    window.remove_prefix(step->consumed);
    if (step->event == Event::head) outcome.events += 'h', outcome.head = parser.head();
    if (step->event == Event::body) {
      if (!outcome.events.ends_with('b')) outcome.events += 'b';
      outcome.body += step->body;
    }
    if (step->event == Event::end) outcome.events += 'e', --ends;
    if (step->event == Event::need_more) {
      EXPECT_TRUE(window.empty()) << "need_more must have consumed everything";
      if (at == text.size()) break;
      window = text.substr(at, std::min(piece, text.size() - at));
    }
  }
  outcome.left = text.size() - at;
  return outcome;
}

Outcome request(std::string_view text, std::size_t piece = 1 << 20, int ends = 1) {
  Parser parser(Parser::Kind::request, 4_KiB);
  return feed(parser, text, piece, ends);
}

Outcome response(std::string_view text, std::string_view method = "GET", std::size_t piece = 1 << 20) {
  Parser parser(Parser::Kind::response, 4_KiB);
  parser.expect_answer_to(method);
  return feed(parser, text, piece);
}

std::string with(std::string_view lines, std::string_view body = "") {
  return fmt::format("POST / HTTP/1.1\r\nHost: a\r\n{}\r\n{}", lines, body);
}

TEST(ParserTest, RefusesWhatTwoParsersCouldReadDifferently) {
  using std::literals::string_literals::operator""s;
  const std::vector<std::pair<std::string, int>> shapes{
      {with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {with("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"), 400},
      {with("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), 400},
      {with("Content-Length: 3, 3\r\n", "abc"), 400},
      {with("Content-Length: +3\r\n", "abc"), 400},
      {with("Content-Length: 0x3\r\n", "abc"), 400},
      {with("Content-Length: -1\r\n", "abc"), 400},
      {with("Content-Length: 99999999999999999999999\r\n", "abc"), 400},
      {with("Content-Length:\r\n", "abc"), 400},
      {with("Content-Length : 3\r\n", "abc"), 400},
      {with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {with("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 501},
      {with("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"), 400},
      {with("Transfer-Encoding: identity\r\n", "abc"), 400},
      {with("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400},
      {with("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), 400},
      {with("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400},
      {with("Transfer-Encoding\r\n : chunked\r\n", "0\r\n\r\n"), 400},
      {with("X: a\r\n folded\r\n"), 400},
      {with("X: a\r\n\tfolded\r\n"), 400},
      {with("X: a\0b\r\n"s), 400},
      {with("X: a\x01\r\n"), 400},
      {with("X: a\x7f\r\n"), 400},
      {with("X: a\rY: b\r\n"), 400},
      {with("X: a\nY: b\r\n"), 400},
      {with("X: a\n\n"), 400},
      {with("X\0: a\r\n"s), 400},
      {with("X Y: a\r\n"), 400},
      {with("(X): a\r\n"), 400},
      {with(": a\r\n"), 400},
      {with("X\r\n"), 400},
      {with("Host: a\r\n"), 400},
      {with("Host: b\r\n"), 400},
      {"GET / HTTP/1.1\r\nX: no host\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
      {"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
      {"GET / HTTP/1.1\nHost: a\n\n", 400},
      {"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"GET /\r\nHost: a\r\n\r\n", 400},
      {" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"G\xc3\xa4T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"\x16\x03\x01\x02 a TLS handshake", 400},
      {"\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
      {"\r\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
  };
  for (const auto& [text, status] : shapes) {
    for (std::size_t piece : {std::size_t{1}, std::size_t{7}, text.size()}) {
      const Outcome outcome = request(text, piece);
      EXPECT_NE(outcome.refusal, 0) << text;
      EXPECT_EQ(outcome.events.find('e'), std::string::npos) << text;
      if (status != 400) {
        EXPECT_EQ(outcome.refusal, status) << text << outcome.why;
      }
      EXPECT_FALSE(outcome.why.empty());
    }
  }
}

TEST(ParserTest, RefusesMalformedChunks) {
  for (std::string_view body :
       {"5\r\nhelloX\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "x\r\nhello\r\n",
        "-1\r\nhello\r\n", "0x5\r\nhello\r\n", "5 \r\nhello\r\n", " 5\r\nhello\r\n", "\r\nhello\r\n",
        "11111111111111111\r\nhello\r\n", "5;a\nb\r\nhello\r\n", "5\r\nhelloAB0\r\n\r\n", "5\rXhello\r\n0\r\n\r\n",
        "0\r\nX\r\n\r\n", "0\r\n\rX"}) {
    const std::string text = with("Transfer-Encoding: chunked\r\n", body);
    for (std::size_t piece : {std::size_t{1}, text.size()}) {
      const Outcome outcome = request(text, piece);
      EXPECT_NE(outcome.refusal, 0) << body;
      EXPECT_EQ(outcome.events.find('e'), std::string::npos) << body;
    }
  }
}

TEST(ParserTest, BoundsTheHeadTheChunkExtensionsAndTheTrailers) {
  const std::string filler(5000, 'a');
  EXPECT_EQ(request(with("X: " + filler + "\r\n")).refusal, 431);
  EXPECT_EQ(request(with("X: " + filler + "\r\n"), 100).refusal, 431);
  EXPECT_EQ(request("GET /" + filler + " HTTP/1.1\r\nHost: a\r\n\r\n", 100).refusal, 431);
  std::string empty_lines;
  for (int i = 0; i < 3000; ++i) empty_lines += "\r\n";
  EXPECT_EQ(request(empty_lines, 100).refusal, 431);
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  EXPECT_EQ(request(with(chunked, "5;" + filler + "\r\nhello\r\n0\r\n\r\n"), 100).refusal, 431);
  EXPECT_EQ(request(with(chunked, "0\r\nX: " + filler + "\r\n\r\n"), 100).refusal, 431);
}

TEST(ParserTest, ACloseInTheMiddleOfAMessageIsNotItsEnd) {
  for (std::string_view text : {"HTTP/1.1 2", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
                                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"}) {
    Parser parser(Parser::Kind::response, 4_KiB);
    feed(parser, text, 3);
    EXPECT_FALSE(parser.idle());
    auto ended = parser.finish();
    ASSERT_FALSE(ended) << text;
    EXPECT_EQ(ended.error().code, Errc::unavailable);
  }
}

TEST(ParserTest, GivesTheSameEventsHoweverTheBytesAreCut) {
  const std::string text =
      "\r\nPUT /a?b=c HTTP/1.1\r\nHoSt: a:1\r\nX-Empty:\r\nX-Padded: \t two words \t\r\nTransfer-Encoding: "
      "Chunked\r\n\r\n"
      "5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: dropped\r\n\r\n";
  for (std::size_t piece = 1; piece <= text.size(); ++piece) {
    const Outcome outcome = request(text, piece);
    ASSERT_EQ(outcome.refusal, 0) << outcome.why;
    EXPECT_EQ(outcome.events, "hbe");
    EXPECT_EQ(outcome.body, "hello world");
    EXPECT_EQ(outcome.left, 0u);
    EXPECT_EQ(outcome.head.method, "PUT");
    EXPECT_EQ(outcome.head.target, "/a?b=c");
    EXPECT_EQ(outcome.head.body, BodyKind::chunked);
    EXPECT_TRUE(outcome.head.keep_alive);
    const Headers expected{
        {"host", "a:1"}, {"x-empty", ""}, {"x-padded", "two words"}, {"transfer-encoding", "Chunked"}};
    EXPECT_EQ(outcome.head.headers, expected);
  }
}

TEST(ParserTest, BodyPiecesAreViewsIntoTheInput) {
  const std::string text = with("Content-Length: 10\r\n", "0123456789");
  Parser parser(Parser::Kind::request, 4_KiB);
  std::string_view rest = text;
  auto head = parser.next(rest);
  ASSERT_TRUE(head && head->event == Event::head);
  rest.remove_prefix(head->consumed);
  EXPECT_EQ(rest, "0123456789") << "the pause after the head has looked at no body byte";
  auto body = parser.next(rest);
  ASSERT_TRUE(body && body->event == Event::body);
  EXPECT_EQ(body->body.data(), rest.data());
  EXPECT_EQ(body->body.size(), 10u);
  rest.remove_prefix(body->consumed);
  EXPECT_TRUE(rest.empty());
  auto end = parser.next(rest);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->event, Event::end) << "the end needs no further byte";
}

TEST(ParserTest, PipelinedMessagesComeOneAfterTheOther) {
  const std::string text = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" + with("Content-Length: 2\r\n", "ab") +
                           "GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
  const Outcome outcome = request(text, 1 << 20, 3);
  EXPECT_EQ(outcome.events, "hehbehe");
  EXPECT_EQ(outcome.head.target, "/3");
  EXPECT_FALSE(outcome.head.keep_alive);
  EXPECT_NE(request(text + "GET /4 HTTP/1.1\r\n\r\n", 1 << 20, 4).refusal, 0) << "nothing may follow a close";
}

TEST(ParserTest, KeepAliveFollowsTheVersionAndTheConnectionLine) {
  EXPECT_TRUE(request("GET / HTTP/1.1\r\nHost: a\r\n\r\n").head.keep_alive);
  EXPECT_FALSE(request("GET / HTTP/1.0\r\n\r\n").head.keep_alive);
  EXPECT_TRUE(request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").head.keep_alive);
  EXPECT_FALSE(response("HTTP/1.1 200 OK\r\n\r\n").head.keep_alive) << "its body ends with the connection";
}

TEST(ParserTest, AnswersWithoutABodyEndWithTheirHead) {
  const std::string length = "Content-Length: 5\r\n\r\n";
  for (const auto& [method, text] : std::vector<std::pair<std::string, std::string>>{
           {"HEAD", "HTTP/1.1 200 OK\r\n" + length},
           {"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
           {"HEAD", "HTTP/1.1 200 OK\r\n\r\n"},
           {"GET", "HTTP/1.1 204 No Content\r\n\r\n"},
           {"GET", "HTTP/1.1 304 Not Modified\r\n" + length},
           {"GET", "HTTP/1.1 100 Continue\r\n\r\n"}}) {
    const Outcome outcome = response(text + "HTTP", method);
    EXPECT_EQ(outcome.events, "he") << text;
    EXPECT_EQ(outcome.head.body, BodyKind::none);
    EXPECT_EQ(outcome.left, 4u) << "what follows is the next answer's";
  }
  EXPECT_EQ(response("HTTP/1.1 200 OK\r\n" + length, "HEAD").head.content_length, 5u);
}

TEST(ParserTest, AnAnswerWithoutLengthEndsWithTheConnection) {
  Parser parser(Parser::Kind::response, 4_KiB);
  const Outcome outcome = feed(parser, "HTTP/1.1 200 OK\r\n\r\nsome text", 4);
  EXPECT_EQ(outcome.events, "hb");
  EXPECT_EQ(outcome.body, "some text");
  EXPECT_EQ(outcome.head.body, BodyKind::until_close);
  EXPECT_TRUE(parser.finish());
  EXPECT_TRUE(parser.idle());
}

TEST(ParserTest, UpgradesAreReportedAndWhatFollowsIsNotSwallowed) {
  const std::string ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
  const Outcome asked = request(ask + "\x81\x05hello");
  EXPECT_EQ(asked.events, "he");
  EXPECT_TRUE(asked.head.upgrade);
  EXPECT_EQ(asked.left, 7u);
  const Outcome refused = request(ask + "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", 1 << 20, 2);
  EXPECT_EQ(refused.events, "hehe") << "next() after a refused upgrade goes on with HTTP";
  const Outcome granted =
      response("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello");
  EXPECT_EQ(granted.events, "he");
  EXPECT_TRUE(granted.head.upgrade);
  EXPECT_EQ(granted.left, 7u);
  const Outcome tunnel = request("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nraw");
  EXPECT_TRUE(tunnel.head.upgrade);
  EXPECT_EQ(tunnel.left, 3u);
  const Outcome with_body =
      request("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nabrest");
  EXPECT_EQ(with_body.events, "hbe");
  EXPECT_EQ(with_body.body, "ab");
  EXPECT_EQ(with_body.left, 4u);
}

}  // namespace
}  // namespace yado::wire
