#pragma once
// Heads as bytes. What a caller puts into a head is checked: a line break in a value would let it write lines of its
// own (response splitting), so it is an error and never sent.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "wire/http.hpp"

namespace yado::wire {

/// What a method and a header name consist of (RFC 9110 5.6.2).
bool is_token(std::string_view text);

/// How the sender frames the body that follows.
struct Framing {
  std::optional<std::uint64_t> content_length;
  bool chunked = false;
  bool close = false;  ///< announce that the connection ends after this message
};

/// Framing headers among `headers` (content-length, transfer-encoding, connection) are left out: `framing` says it.
Result<std::string> request_head(const Request& request, std::string_view host, const Framing& framing);
Result<std::string> response_head(int status, const Headers& headers, const Framing& framing);

}  // namespace yado::wire
