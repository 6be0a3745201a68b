#pragma once
// What must hold of the HTTP parser, whatever bytes come and however they are cut.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.hpp"
#include "wire/message.hpp"
#include "wire/parser.hpp"

namespace yado::fuzz {

inline constexpr std::size_t head_bytes = 4096;

/// What a reader of the connection learns.
struct Seen {
  std::string events;  ///< h b e, and at the end: ! refused, . closed in time, ? closed too early, ^ upgraded
  std::string body;    ///< of all messages
  std::vector<wire::Head> heads;
  std::size_t left = 0;  ///< not consumed, after an upgrade
};

inline std::size_t count(const wire::Head& head, std::string_view name) {
  return static_cast<std::size_t>(
      std::ranges::count(head.headers, name, [](const auto& header) { return header.first; }));
}

/// No other parser may see another message in what was let pass (request smuggling).
inline void check_head(const wire::Head& head, wire::Parser::Kind kind) {
  const std::size_t lengths = count(head, "content-length"), codings = count(head, "transfer-encoding");
  YADO_CHECK(lengths + codings <= 1, "{} Content-Length and {} Transfer-Encoding lines", lengths, codings);
  if (kind == wire::Parser::Kind::request) {
    YADO_CHECK(count(head, "host") == 1 || (head.minor == 0 && count(head, "host") == 0), "not one Host line");
    YADO_CHECK(wire::is_token(head.method) && !head.target.empty(), "\"{}\" \"{}\"", head.method, head.target);
    YADO_CHECK(head.body != wire::BodyKind::until_close, "a request that ends with the connection");
    for (unsigned char c : head.target) YADO_CHECK(c > 0x20 && c != 0x7f, "a blank in the target \"{}\"", head.target);
  } else {
    YADO_CHECK(head.status >= 100 && head.status <= 999, "status {}", head.status);
  }
  for (const auto& [name, value] : head.headers) {
    YADO_CHECK(wire::is_token(name), "header name \"{}\"", name);
    for (char c : name) YADO_CHECK(!(c >= 'A' && c <= 'Z'), "header name \"{}\" is not in lower case", name);
    for (unsigned char c : value) YADO_CHECK(c == '\t' || (c >= 0x20 && c != 0x7f), "a control character in {}", name);
    if (name == "content-length")
      YADO_CHECK(!value.empty() && value.find_first_not_of("0123456789") == value.npos, "Content-Length \"{}\"", value);
  }
  if (head.body == wire::BodyKind::length)
    YADO_CHECK(lengths == 1 && head.content_length > 0, "a length out of nothing");
  if (head.body == wire::BodyKind::chunked) YADO_CHECK(codings == 1 && head.minor == 1, "chunks out of nothing");
}

/// Feeds `text` to the parser; `piece_at(position)` says how many bytes come next.
template <class PieceAt>
Seen feed(std::string_view text, wire::Parser::Kind kind, std::string_view asked, PieceAt piece_at) {
  wire::Parser parser(kind, head_bytes);
  if (kind == wire::Parser::Kind::response) parser.expect_answer_to(asked);
  Seen seen;
  std::vector<char> piece;  // a copy of exactly that size, so that a sanitizer sees every read beyond it
  std::string_view window;
  std::size_t given = 0, announced = 0, got = 0;
  for (std::size_t steps = 0;; ++steps) {
    YADO_CHECK(steps <= 4 * text.size() + 16, "the parser does not come to an end");
    const auto step = parser.next(window);
    if (!step) {
      YADO_CHECK(step.error().code == Errc::corrupt, "{}", step.error().text());
      const int status = parser.refusal_status();
      YADO_CHECK(status == 400 || status == 431 || status == 501 || status == 505, "refused with {}", status);
      seen.events += '!';
      return seen;
    }
    YADO_CHECK(step->consumed <= window.size(), "{} of {} bytes consumed", step->consumed, window.size());
    if (!step->body.empty())
      YADO_CHECK(
          step->body.data() >= window.data() && step->body.data() + step->body.size() <= window.data() + step->consumed,
          "a body outside of what was consumed");
    window.remove_prefix(step->consumed);
    switch (step->event) {
      case wire::Parser::Event::head:
        check_head(parser.head(), kind);
        seen.heads.push_back(parser.head());
        announced = parser.head().content_length;
        got = 0;
        seen.events += 'h';
        break;
      case wire::Parser::Event::body:
        YADO_CHECK(!step->body.empty(), "an empty piece of a body");
        if (!seen.events.ends_with('b')) seen.events += 'b';
        seen.body += step->body;
        got += step->body.size();
        YADO_CHECK(seen.heads.back().body != wire::BodyKind::none, "a body that was not announced");
        YADO_CHECK(seen.heads.back().body != wire::BodyKind::length || got <= announced, "more than was announced");
        break;
      case wire::Parser::Event::end:
        YADO_CHECK(seen.heads.back().body != wire::BodyKind::length || got == announced, "{} of {} bytes", got,
                   announced);
        seen.events += 'e';
        if (seen.heads.back().upgrade) {  // the rest is of another protocol
          seen.events += '^';
          seen.left = window.size() + text.size() - given;
          return seen;
        }
        break;
      case wire::Parser::Event::need_more:
        YADO_CHECK(window.empty(), "wants more, and has looked at all but {} bytes", window.size());
        if (given == text.size()) {
          seen.events += parser.finish() ? '.' : '?';
          return seen;
        }
        const std::size_t size = std::clamp<std::size_t>(piece_at(given), 1, text.size() - given);
        piece.assign(text.begin() + static_cast<std::ptrdiff_t>(given),
                     text.begin() + static_cast<std::ptrdiff_t>(given + size));
        piece.shrink_to_fit();
        window = std::string_view(piece.data(), piece.size());
        given += size;
        break;
    }
  }
}

/// In one piece, byte by byte, and cut at places that the data itself says: always the same messages.
inline std::vector<wire::Head> check_all_ways(std::string_view text, wire::Parser::Kind kind, std::string_view asked) {
  const Seen whole = feed(text, kind, asked, [&](std::size_t) { return text.size(); });
  const auto compare = [&](const Seen& other, std::string_view how) {
    YADO_CHECK(other.events == whole.events, "{}: \"{}\", in one piece: \"{}\"", how, other.events, whole.events);
    YADO_CHECK(other.body == whole.body && other.left == whole.left, "{}: another body", how);
    for (std::size_t i = 0; i < whole.heads.size(); ++i) {
      const wire::Head &a = whole.heads[i], &b = other.heads[i];
      YADO_CHECK(a.method == b.method && a.target == b.target && a.status == b.status && a.minor == b.minor &&
                     a.headers == b.headers && a.body == b.body && a.content_length == b.content_length &&
                     a.keep_alive == b.keep_alive && a.upgrade == b.upgrade,
                 "{}: another head", how);
    }
  };
  compare(feed(text, kind, asked, [](std::size_t) { return 1; }), "byte by byte");
  compare(feed(text, kind, asked, [&](std::size_t at) { return static_cast<unsigned char>(text[at]) % 23 + 1; }),
          "cut");
  return whole.heads;
}

}  // namespace yado::fuzz
