#pragma once
// HTTP/1.1 messages as values. Parsing is llhttp's (strict), TLS is OpenSSL's, I/O is Asio's.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace yado::wire {

/// In the order received; names in lower case.
using Headers = std::vector<std::pair<std::string, std::string>>;

/// The first value of `name` (lower case), or empty.
std::string_view find(const Headers& headers, std::string_view name);

struct Request {
  std::string method = "GET";
  std::string target = "/";  ///< path and query, as on the wire
  Headers headers;
  std::string body;
  std::string
      peer;  ///< on a server: the common name in the peer's certificate ("agent:h2"), or "local" on a unix socket
};

struct Response {
  int status = 200;
  Headers headers;
  std::string body;
};

}  // namespace yado::wire
