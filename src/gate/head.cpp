#include "gate/head.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "base/check.hpp"
#include "wire/message.hpp"

namespace yado::gate {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

bool same(std::string_view left, std::string_view right) {
  return std::ranges::equal(left, right, [](char a, char b) { return lower(a) == lower(b); });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// Calls `use` with every element of every comma-separated list among the lines `name`.
template <class Use>
void each_element(const wire::Headers& headers, std::string_view name, Use use) {
  for (const auto& [key, value] : headers) {
    if (key != name) continue;
    std::string_view rest = value;
    while (!rest.empty()) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      if (const std::string_view element = trim(rest.substr(0, comma)); !element.empty()) use(element);
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  }
}

bool lists(const wire::Headers& headers, std::string_view name, std::string_view wanted) {
  bool found = false;
  each_element(headers, name, [&](std::string_view element) { found = found || same(element, wanted); });
  return found;
}

/// Lines about one connection, which say nothing about the next one, and those that the gate writes itself.
bool is_hop_by_hop(std::string_view name) {
  switch (name.size()) {
    case 2:
      return name == "te";
    case 7:
      return name == "trailer" || name == "upgrade";
    case 10:
      return name == "connection" || name == "keep-alive";
    case 14:
      return name == "content-length";
    case 16:
      return name == "proxy-connection";
    case 17:
      return name == "transfer-encoding";
    default:
      return false;
  }
}

/// RFC 9110 7.6.1: what Connection names is for this hop only. Almost always that is "close" or "keep-alive".
bool named_by_connection(const wire::Headers& headers, std::string_view name) {
  bool found = false;
  each_element(headers, "connection", [&](std::string_view element) { found = found || same(element, name); });
  return found;
}

bool connection_names_others(const wire::Headers& headers) {
  bool others = false;
  each_element(headers, "connection", [&](std::string_view element) {
    others = others || !(same(element, "close") || same(element, "keep-alive") || same(element, "upgrade"));
  });
  return others;
}

void line(std::string& text, std::string_view name, std::string_view value) {
  text.append(name).append(": ").append(value).append("\r\n");
}

/// "HTTP/1.1 200 OK\r\n", with the words that wire knows.
const std::string& status_line(int status) {
  static const std::array<std::string, 400> lines = [] {
    std::array<std::string, 400> made;
    for (int i = 0; i < 400; ++i) {
      auto head = wire::response_head(200 + i, {}, {});
      YADO_CHECK(head.has_value(), "status {}", 200 + i);
      made[static_cast<std::size_t>(i)] = head->substr(0, head->find('\n') + 1);
    }
    return made;
  }();
  static const std::string strange = "HTTP/1.1 599 Status\r\n";
  return status >= 200 && status < 600 ? lines[static_cast<std::size_t>(status - 200)] : strange;
}

Method method_of(std::string_view method) {
  if (method == "GET" || method == "HEAD" || method == "OPTIONS" || method == "TRACE") return Method::safe;
  if (method == "PUT" || method == "DELETE") return Method::idempotent;
  return Method::other;
}

bool is_authority(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '.' ||
           c == '_' || c == ':' || c == '[' || c == ']';
  });
}

std::string host_name_of(std::string_view authority) {
  if (authority.starts_with('[')) {
    authority = authority.substr(0, std::min(authority.find(']'), authority.size() - 1) + 1);
  } else {
    authority = authority.substr(0, authority.find(':'));
  }
  if (authority.ends_with('.')) authority.remove_suffix(1);  // the same name, written in full
  std::string name(authority);
  std::ranges::transform(name, name.begin(), lower);
  return name;
}

void append_answer_lines(std::string& text, const wire::Headers& headers) {
  const bool others = connection_names_others(headers);
  for (const auto& [name, value] : headers) {
    if (is_hop_by_hop(name) || name.starts_with("x-yado-")) continue;
    if (others && named_by_connection(headers, name)) continue;
    line(text, name, value);
  }
}

void append_answerer(std::string& text, const Answerer& answerer) {
  line(text, "x-yado-instance", answerer.instance);
  fmt::format_to(std::back_inserter(text), "x-yado-epoch: {}\r\n", answerer.epoch.value());
}

void append_connection(std::string& text, ClientConnection connection) {
  if (connection == ClientConnection::close) text += "connection: close\r\n";
  if (connection == ClientConnection::keep_alive_1_0) text += "connection: keep-alive\r\n";
}

}  // namespace

Result<Asked> understand(const wire::Head& head) {
  Asked asked;
  if (head.method == "CONNECT")
    return fail(Errc::unsupported, "CONNECT is not supported: this is the front door of services, not a forward proxy");
  asked.method = method_of(head.method);
  asked.target = head.target;
  asked.authority = wire::find(head.headers, "host");
  if (!head.target.starts_with('/') && head.target != "*") {
    // absolute-form (RFC 9112 3.2.2): what it names counts more than the Host line.
    constexpr std::string_view scheme = "http://";
    if (!same(std::string_view(head.target).substr(0, scheme.size()), scheme))
      return fail(Errc::invalid_argument, "the request target is neither a path nor an http:// URL");
    std::string_view rest = std::string_view(head.target).substr(scheme.size());
    const std::size_t end = std::min(rest.find_first_of("/?#"), rest.size());
    asked.authority = rest.substr(0, end);
    rest.remove_prefix(end);
    asked.target = rest.starts_with('/') ? std::string(rest) : "/" + std::string(rest);
  }
  if (head.target == "*" && head.method != "OPTIONS")
    return fail(Errc::invalid_argument, "only OPTIONS may ask for \"*\"");
  if (!is_authority(asked.authority)) {
    if (asked.authority.empty()) return fail(Errc::invalid_argument, "the request names no host");
    return fail(Errc::invalid_argument, "the Host line is not a host name and a port");
  }
  asked.host_name = host_name_of(asked.authority);
  if (const std::string_view expect = wire::find(head.headers, "expect"); !expect.empty()) {
    if (!same(expect, "100-continue")) return fail(Errc::unsupported, "an expectation other than 100-continue");
    asked.expects_continue = head.minor >= 1;
  }
  // Any other upgrade may be ignored (RFC 9110 7.8), which is what a client that offers h2c counts on.
  asked.websocket = head.minor >= 1 && head.method == "GET" && lists(head.headers, "upgrade", "websocket") &&
                    lists(head.headers, "connection", "upgrade");
  return asked;
}

std::string forwarded_head(const wire::Head& head, const Asked& asked, std::string_view client_address) {
  std::string text;
  text.reserve(512);
  text.append(head.method).append(" ").append(asked.target).append(" HTTP/1.1\r\n");
  line(text, "host", asked.authority);
  const bool others = connection_names_others(head.headers);
  std::string forwarded_for;
  for (const auto& [name, value] : head.headers) {
    if (is_hop_by_hop(name) || name == "host" || name == "expect") continue;
    if (others && named_by_connection(head.headers, name)) continue;
    if (name == "x-forwarded-for") {
      forwarded_for.append(value).append(", ");
      continue;
    }
    if (name == "x-forwarded-proto" || name == "x-forwarded-host") continue;
    line(text, name, value);
  }
  line(text, "x-forwarded-for", forwarded_for.append(client_address));
  line(text, "x-forwarded-proto", "http");
  line(text, "x-forwarded-host", asked.authority);
  text += head.minor == 0 ? "via: 1.0 yado\r\n" : "via: 1.1 yado\r\n";
  if (asked.websocket) text += "connection: upgrade\r\nupgrade: websocket\r\n";
  if (head.body == wire::BodyKind::chunked)
    text += "transfer-encoding: chunked\r\n";
  else if (!wire::find(head.headers, "content-length").empty())
    fmt::format_to(std::back_inserter(text), "content-length: {}\r\n", head.content_length);
  text += "\r\n";
  return text;
}

Framing framing_for(const wire::Head& answer, int client_minor) {
  switch (answer.body) {
    case wire::BodyKind::none:
      return Framing::none;
    case wire::BodyKind::length:
      return Framing::length;
    case wire::BodyKind::chunked:
    case wire::BodyKind::until_close:
      break;
  }
  return client_minor >= 1 ? Framing::chunked : Framing::until_close;
}

std::string answer_head(const wire::Head& answer, Framing framing, ClientConnection connection,
                        const Answerer& answerer) {
  std::string text;
  text.reserve(512);
  text += status_line(answer.status);
  append_answer_lines(text, answer.headers);
  append_answerer(text, answerer);
  // HEAD and 304 announce the length of a body that does not follow; a 204 must not (RFC 9110 8.6).
  if (framing == Framing::chunked)
    text += "transfer-encoding: chunked\r\n";
  else if (answer.status != 204 && framing != Framing::until_close &&
           !wire::find(answer.headers, "content-length").empty())
    fmt::format_to(std::back_inserter(text), "content-length: {}\r\n", answer.content_length);
  append_connection(text, connection);
  text += "\r\n";
  return text;
}

std::string interim_head(const wire::Head& answer) {
  std::string text =
      fmt::format("HTTP/1.1 {} {}\r\n", answer.status, answer.status == 103 ? "Early Hints" : "Processing");
  append_answer_lines(text, answer.headers);
  text += "\r\n";
  return text;
}

std::string switching_head(const wire::Head& answer, const Answerer& answerer) {
  std::string text = "HTTP/1.1 101 Switching Protocols\r\n";
  append_answer_lines(text, answer.headers);
  append_answerer(text, answerer);
  text += "connection: upgrade\r\nupgrade: websocket\r\n\r\n";
  return text;
}

std::string refusal(int status, Outcome outcome, std::string_view code, std::string_view message, bool retryable,
                    ClientConnection connection, bool body) {
  const std::string_view outcome_name = outcome == Outcome::none ? "none" : "unknown";
  const nlohmann::json json{{"error",
                             {{"code", code},
                              {"number", static_cast<int>(errc_from_name(code))},
                              {"message", message},
                              {"retryable", retryable}}},
                            {"outcome", outcome_name}};
  const std::string content = api::dump(json) + "\n";
  std::string text = status_line(status);
  fmt::format_to(std::back_inserter(text),
                 "content-type: application/json\r\ncontent-length: {}\r\ncache-control: no-store\r\n"
                 "x-yado-outcome: {}\r\n",
                 content.size(), outcome_name);
  if (status == 503) text += "retry-after: 1\r\n";
  append_connection(text, connection);
  text += "\r\n";
  if (body) text += content;
  return text;
}

}  // namespace yado::gate
