#include "wire/message.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace yado::wire {
namespace {

constexpr std::array<bool, 256> token_characters = [] {
  std::array<bool, 256> table{};
  for (int c = '0'; c <= '9'; ++c) table[c] = true;
  for (int c = 'a'; c <= 'z'; ++c) table[c] = true;
  for (int c = 'A'; c <= 'Z'; ++c) table[c] = true;
  for (unsigned char c : std::string_view("!#$%&'*+-.^_`|~")) table[c] = true;
  return table;
}();

bool is_text(std::string_view text) {
  return std::ranges::none_of(text, [](unsigned char c) { return (c < 0x20 && c != '\t') || c == 0x7f; });
}

bool is_target(std::string_view text) {
  return text.starts_with('/') && std::ranges::none_of(text, [](unsigned char c) { return c <= 0x20 || c >= 0x7f; });
}

bool is_framing(std::string_view name) {
  return name == "content-length" || name == "transfer-encoding" || name == "connection";
}

/// The words of RFC 9110 for the statuses that Yadokari uses; nobody reads them but people.
std::string_view reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 416:
      return "Range Not Satisfiable";
    case 422:
      return "Unprocessable Content";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    case 507:
      return "Insufficient Storage";
    default:
      return "Status";
  }
}

Status append(std::string& text, const Headers& headers, const Framing& framing) {
  for (const auto& [name, value] : headers) {
    if (is_framing(name)) continue;
    if (!is_token(name)) return fail(Errc::invalid_argument, "\"{}\" is not a header name", name);
    if (!is_text(value)) return fail(Errc::invalid_argument, "header {}: control character in the value", name);
    fmt::format_to(std::back_inserter(text), "{}: {}\r\n", name, value);
  }
  if (framing.content_length)
    fmt::format_to(std::back_inserter(text), "content-length: {}\r\n", *framing.content_length);
  if (framing.chunked) text += "transfer-encoding: chunked\r\n";
  if (framing.close) text += "connection: close\r\n";
  text += "\r\n";
  return {};
}

}  // namespace

bool is_token(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return token_characters[c]; });
}

Result<std::string> request_head(const Request& request, std::string_view host, const Framing& framing) {
  if (!is_token(request.method)) return fail(Errc::invalid_argument, "\"{}\" is not a method", request.method);
  if (!is_target(request.target))
    return fail(Errc::invalid_argument, "\"{}\" is not a path: it must start with '/' and be percent-encoded",
                request.target);
  std::string text = fmt::format("{} {} HTTP/1.1\r\n", request.method, request.target);
  // An empty one counts: a second Host line would make the request one that servers refuse.
  if (std::ranges::find(request.headers, "host", &Headers::value_type::first) == request.headers.end())
    fmt::format_to(std::back_inserter(text), "host: {}\r\n", host);
  YADO_TRY(append(text, request.headers, framing), "request");
  return text;
}

Result<std::string> response_head(int status, const Headers& headers, const Framing& framing) {
  if (status < 200 || status > 599) return fail(Errc::invalid_argument, "{} is not the status of an answer", status);
  std::string text = fmt::format("HTTP/1.1 {} {}\r\n", status, reason(status));
  YADO_TRY(append(text, headers, framing), "response");
  return text;
}

}  // namespace yado::wire
