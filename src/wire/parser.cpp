#include "wire/parser.hpp"

#include <llhttp.h>

#include <algorithm>
#include <array>

#include "wire/message.hpp"

namespace yado::wire {
namespace {

/// What needs no look at its neighbours: neither a control character nor a blank.
constexpr std::array<bool, 256> plain_characters = [] {
  std::array<bool, 256> table{};
  for (int c = 0; c < 256; ++c) table[c] = c > 0x20 && c != 0x7f;
  return table;
}();

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool equal_ignoring_case(std::string_view left, std::string_view right) {
  return std::ranges::equal(left, right, [](char a, char b) { return lower(a) == lower(b); });
}

}  // namespace

struct Parser::Impl {
  enum class Phase { before, head, body, over };

  Kind kind;
  std::size_t head_bytes;
  Phase phase = Phase::before;
  llhttp_settings_t settings{};
  llhttp_t http{};
  Head head;
  std::string asked_method;

  // The line scan of the head, which goes on from one piece of input to the next.
  char previous = 0;
  bool line_empty = true;
  bool first_line = true;
  bool head_over = false;
  bool after_data = false;   ///< the last byte was chunk data
  std::size_t overhead = 0;  ///< bytes since the last body byte, or of the head

  std::string name;
  std::string value;

  // What the callbacks left behind during one llhttp_execute().
  bool head_done = false;
  bool message_done = false;
  std::string_view piece;

  int refusal = 400;

  Impl(Kind which, std::size_t limit) : kind(which), head_bytes(limit) {
    llhttp_settings_init(&settings);
    settings.on_url = [](llhttp_t* parser, const char* at, std::size_t length) {
      of(parser).head.target.append(at, length);
      return 0;
    };
    settings.on_header_field = [](llhttp_t* parser, const char* at, std::size_t length) {
      Impl& self = of(parser);
      if (self.phase != Phase::head) return 0;  // trailers are dropped
      for (char c : std::string_view(at, length)) self.name.push_back(lower(c));
      return 0;
    };
    settings.on_header_value = [](llhttp_t* parser, const char* at, std::size_t length) {
      Impl& self = of(parser);
      if (self.phase == Phase::head) self.value.append(at, length);
      return 0;
    };
    settings.on_header_value_complete = [](llhttp_t* parser) {
      Impl& self = of(parser);
      if (self.phase != Phase::head) return 0;
      self.head.headers.emplace_back(std::move(self.name), trim(self.value));
      self.name.clear();
      self.value.clear();
      return 0;
    };
    settings.on_headers_complete = [](llhttp_t* parser) {
      Impl& self = of(parser);
      self.head_done = true;
      if (self.has_no_body()) parser->flags |= F_SKIPBODY;
      return static_cast<int>(HPE_PAUSED);
    };
    settings.on_body = [](llhttp_t* parser, const char* at, std::size_t length) {
      of(parser).piece = std::string_view(at, length);
      return static_cast<int>(HPE_PAUSED);
    };
    settings.on_message_complete = [](llhttp_t* parser) {
      of(parser).message_done = true;
      return static_cast<int>(HPE_PAUSED);
    };
  }

  static Impl& of(llhttp_t* parser) { return *static_cast<Impl*>(parser->data); }

  /// RFC 9112 6.3: whatever such a response's head announces, nothing follows. llhttp does not know what was asked.
  bool has_no_body() const {
    if (kind == Kind::request) return false;
    const int status = http.status_code;
    return asked_method == "HEAD" || status / 100 == 1 || status == 204 || status == 304 ||
           (asked_method == "CONNECT" && status / 100 == 2);
  }

  void begin() {
    llhttp_init(&http, kind == Kind::request ? HTTP_REQUEST : HTTP_RESPONSE, &settings);
    http.data = this;
    head = Head{};
    previous = 0;
    line_empty = first_line = true;
    head_over = after_data = false;
    overhead = 0;
    name.clear();
    value.clear();
    phase = Phase::before;
  }

  std::unexpected<Error> refuse(int status, std::string_view why) {
    refusal = status;
    return fail(Errc::corrupt, "not acceptable as HTTP: {}", why);
  }

  std::unexpected<Error> refuse_by_llhttp() {
    const char* reason = llhttp_get_error_reason(&http);
    const llhttp_errno_t code = llhttp_get_errno(&http);
    const int status = code == HPE_INVALID_VERSION || code == HPE_PAUSED_H2_UPGRADE ? 505
                       : code == HPE_INVALID_TRANSFER_ENCODING                      ? 501
                                                                                    : 400;
    return refuse(status, reason != nullptr && *reason != 0 ? reason : llhttp_errno_name(code));
  }

  Result<Step> next(std::string_view data) {
    if (phase == Phase::over) {
      if (!head.keep_alive && !data.empty()) return refuse(400, "data after the last message of the connection");
      if (data.empty()) return Step{};
      begin();
    }
    std::size_t skipped = 0;
    if (phase == Phase::before) {
      YADO_TRY(skip_empty_lines(data, skipped), "before a message");
      if (skipped == data.size()) return Step{Event::need_more, skipped, {}};
      phase = Phase::head;
    }
    Result<Step> step = phase == Phase::head ? next_of_head(data.substr(skipped)) : next_of_body(data);
    if (step) step->consumed += skipped;
    return step;
  }

  /// RFC 9112 2.2: an empty line before a request is to be ignored (old clients send one after a body).
  Status skip_empty_lines(std::string_view data, std::size_t& skipped) {
    for (; skipped < data.size() && (data[skipped] == '\r' || data[skipped] == '\n'); ++skipped) {
      if ((data[skipped] == '\n') != (previous == '\r')) return refuse(400, "bare CR or LF");
      previous = data[skipped];
      if (++overhead > head_bytes) return refuse(431, "endless empty lines");
    }
    if (skipped < data.size()) {
      if (previous == '\r') return refuse(400, "bare CR");
      previous = 0;
    }
    return {};
  }

  Result<Step> next_of_head(std::string_view data) {
    auto scanned = scan_head(data);
    if (!scanned) return context(scanned.error(), "head");
    const std::string_view part = data.substr(0, *scanned);
    overhead += part.size();
    if (overhead > head_bytes) return refuse(431, fmt::format("the head is longer than {} bytes", head_bytes));
    const llhttp_errno_t code = llhttp_execute(&http, part.data(), part.size());
    if (code == HPE_OK && head_over) return refuse(505, "the preface of HTTP/2");  // llhttp reads on beyond its empty line
    if (code == HPE_OK) return Step{Event::need_more, part.size(), {}};
    if (code != HPE_PAUSED || !head_done) return refuse_by_llhttp();
    const std::size_t consumed = static_cast<std::size_t>(llhttp_get_error_pos(&http) - part.data());
    head_done = false;
    overhead = 0;
    YADO_TRY(complete_head(), "head");
    phase = Phase::body;
    return Step{Event::head, consumed, {}};
  }

  /// Holds the head against what llhttp lets pass (folded lines, for one), whichever of its modes and versions is
  /// linked. Returns how much of `data` belongs to the head.
  Result<std::size_t> scan_head(std::string_view data) {
    std::size_t at = 0;
    for (; at < data.size(); ++at) {
      const auto c = static_cast<unsigned char>(data[at]);
      if (plain_characters[c] && previous != '\r') {
        line_empty = false;
        previous = data[at];
        continue;
      }
      if (previous == '\r' && c != '\n') return refuse(400, "a bare CR");
      if (c == '\n') {
        if (previous != '\r') return refuse(400, "a bare LF");
        if (line_empty) {
          previous = data[at];
          head_over = true;
          return at + 1;
        }
        line_empty = true;
        first_line = false;
      } else if (c == ' ' || c == '\t') {
        if (line_empty) return refuse(400, first_line ? "a blank before the first line" : "a folded header line");
      } else if (c != '\r') {
        return refuse(400, "a control character");
      }
      previous = data[at];
    }
    return at;
  }

  Status complete_head() {
    if (http.http_major != 1) return refuse(505, "a version other than HTTP/1");
    head.minor = http.http_minor;
    if (kind == Kind::request)
      head.method = llhttp_method_name(static_cast<llhttp_method_t>(http.method));
    else
      head.status = http.status_code;
    head.keep_alive = llhttp_should_keep_alive(&http) != 0;
    head.upgrade = http.upgrade != 0 || (kind == Kind::response && asked_method == "CONNECT" && head.status / 100 == 2);

    int hosts = 0, lengths = 0, codings = 0;
    for (const auto& [key, text] : head.headers) {
      if (!is_token(key)) return refuse(400, "a header name with a character that no name may have");
      hosts += key == "host";
      lengths += key == "content-length";
      if (key == "transfer-encoding") {
        ++codings;
        if (!equal_ignoring_case(text, "chunked")) return refuse(501, "a transfer coding other than chunked");
      }
    }
    if (kind == Kind::response && (head.status < 100 || head.status > 999)) return refuse(400, "no status of three digits");
    if (kind == Kind::request && hosts > 1) return refuse(400, "several Host lines");
    if (kind == Kind::request && hosts == 0 && head.minor >= 1) return refuse(400, "no Host line");
    if (lengths > 1) return refuse(400, "several Content-Length lines");
    if (codings > 1) return refuse(400, "several Transfer-Encoding lines");
    if (codings > 0 && lengths > 0) return refuse(400, "Content-Length together with Transfer-Encoding");
    if (codings > 0 && head.minor == 0) return refuse(400, "Transfer-Encoding in HTTP/1.0");

    if (lengths > 0) head.content_length = http.content_length;
    if (http.flags & F_SKIPBODY || (kind == Kind::request && head.method == "CONNECT"))
      head.body = BodyKind::none;
    else if (codings > 0)
      head.body = BodyKind::chunked;
    else if (lengths > 0)
      head.body = head.content_length > 0 ? BodyKind::length : BodyKind::none;
    else
      head.body = kind == Kind::request ? BodyKind::none : BodyKind::until_close;
    return {};
  }

  Result<Step> next_of_body(std::string_view data) {
    llhttp_resume(&http);
    const llhttp_errno_t code = llhttp_execute(&http, data.data(), data.size());
    if (code != HPE_OK && code != HPE_PAUSED) return refuse_by_llhttp();
    Step step;
    step.consumed = code == HPE_OK ? data.size() : static_cast<std::size_t>(llhttp_get_error_pos(&http) - data.data());
    step.body = std::exchange(piece, {});
    const std::string_view framing = data.substr(0, step.consumed - step.body.size());  // a piece ends the step
    YADO_TRY(scan_framing(framing), "body");
    overhead += framing.size();
    if (overhead > head_bytes) return refuse(431, fmt::format("chunk framing is longer than {} bytes", head_bytes));
    if (!step.body.empty()) {
      step.event = Event::body;
      overhead = 0;
      after_data = true;
    } else if (std::exchange(message_done, false)) {
      step.event = Event::end;
      phase = Phase::over;
    }
    return step;
  }

  /// Holds chunk lines and trailers against what llhttp lets pass when it is not built strict.
  Status scan_framing(std::string_view framing) {
    for (char c : framing) {
      if (std::exchange(after_data, false) && c != '\r') return refuse(400, "chunk data longer than announced");
      if ((previous == '\r') != (c == '\n')) return refuse(400, "a bare CR or LF");
      if ((c >= 0 && c < 0x20 && c != '\t' && c != '\r' && c != '\n') || c == 0x7f)
        return refuse(400, "a control character");
      previous = c;
    }
    return {};
  }

  Status finish() {
    if (phase == Phase::over || (phase == Phase::before && previous == 0)) return {};
    if (phase == Phase::body && head.body == BodyKind::until_close) {
      phase = Phase::over;
      head.keep_alive = false;
      return {};
    }
    return fail(Errc::unavailable, "the connection was closed in the middle of a message");
  }
};

Parser::Parser(Kind kind, std::size_t head_bytes) : impl_(std::make_unique<Impl>(kind, head_bytes)) { impl_->begin(); }
Parser::Parser(Parser&&) noexcept = default;
Parser& Parser::operator=(Parser&&) noexcept = default;
Parser::~Parser() = default;

void Parser::expect_answer_to(std::string_view method) { impl_->asked_method = method; }
Result<Parser::Step> Parser::next(std::string_view data) { return impl_->next(data); }
Status Parser::finish() { return impl_->finish(); }
Head& Parser::head() { return impl_->head; }
bool Parser::idle() const {
  return impl_->phase == Impl::Phase::over || (impl_->phase == Impl::Phase::before && impl_->overhead == 0);
}
int Parser::refusal_status() const { return impl_->refusal; }

}  // namespace yado::wire
