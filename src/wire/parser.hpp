#pragma once
// An incremental, strict HTTP/1.x parser (RFC 9112) over llhttp. It does no I/O: bytes come in, events come out.
//
//   Parser parser(Parser::Kind::request, 64_KiB);
//   for (;;) {
//     auto step = parser.next(input);            // input: what was received and not consumed yet
//     if (!step) -> answer parser.refusal_status() and close
//     input.remove_prefix(step->consumed);
//     switch (step->event) {
//       need_more: receive more, or finish() when the peer closed
//       head:      parser.head() is complete; no body byte has been looked at
//       body:      step->body is a piece of the body: a view into `input`, without chunk framing, never copied
//       end:       the message is over; the next call of next() starts the next one
//     }
//   }
//
// Events come one at a time, so that a caller can stop after any of them (that is the pause): call next() again with
// the rest, also when the rest is empty, until it says need_more.
//
// Refused, because two parsers could understand them differently (request smuggling): Content-Length together with
// Transfer-Encoding, either of them twice, any transfer coding but "chunked", folded lines, bare CR or LF, control
// characters, blanks before the colon, none or several Host lines, malformed chunks.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "wire/http.hpp"

namespace yado::wire {

/// Where a body ends.
enum class BodyKind { none, length, chunked, until_close };

struct Head {
  std::string method;  ///< of a request
  std::string target;  ///< of a request, as on the wire
  int status = 0;      ///< of a response
  int minor = 1;       ///< HTTP/1.<minor>
  Headers headers;     ///< names in lower case, values without blanks around them
  BodyKind body = BodyKind::none;
  std::uint64_t content_length = 0;  ///< as announced, also where no body follows (HEAD)
  bool keep_alive = false;           ///< the sender lets the connection go on after this message
  /// A request that asks for another protocol (Upgrade, CONNECT), or a response that grants it (101, 2xx to CONNECT).
  /// After its `end` the parser looks at no further byte unless next() is called: what was not consumed belongs to
  /// the other protocol if the upgrade is granted, and to the next HTTP message if it is not.
  bool upgrade = false;
};

class Parser {
 public:
  enum class Kind { request, response };
  enum class Event { need_more, head, body, end };

  struct Step {
    Event event = Event::need_more;
    std::size_t consumed = 0;
    std::string_view body;
  };

  /// `head_bytes` bounds the head, and also trailers and chunk extensions.
  Parser(Kind kind, std::size_t head_bytes);
  Parser(Parser&&) noexcept;
  Parser& operator=(Parser&&) noexcept;
  ~Parser();

  /// For responses, before their head: the method that was asked. HEAD has no body, CONNECT may turn into a tunnel.
  void expect_answer_to(std::string_view method);

  /// Consumes a part of `data` and reports at most one event. After an error (corrupt) the connection is useless.
  Result<Step> next(std::string_view data);
  /// The peer closed. Success when that ends the message (until_close) or when none was begun; else `unavailable`.
  Status finish();

  /// Valid from `head` until the first next() after `end`; the caller may move it out.
  Head& head();
  /// True when no byte of a message has been seen since the last `end`.
  bool idle() const;
  /// After an error: the status to answer a request with (400, 431, 501, 505).
  int refusal_status() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace yado::wire
