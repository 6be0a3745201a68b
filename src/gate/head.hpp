#pragma once
// What a reverse proxy changes in the heads that pass through it (RFC 9110 7.6), and the heads it makes itself.
// Pure: parsed heads come in, bytes go out. The parser has refused whatever two readers could understand differently.

#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "gate/core/scheduler.hpp"
#include "wire/http.hpp"
#include "wire/parser.hpp"

namespace yado::gate {

/// What the gate needs to know of a request before it can decide anything.
struct Asked {
  std::string host_name;  ///< lower case, without port: what services are named by
  std::string authority;  ///< as the client wrote it: the Host line of the forwarded request
  std::string target;     ///< origin-form
  Method method = Method::other;
  bool expects_continue = false;
  bool websocket = false;
};

/// Errors: invalid_argument (400), unsupported (501: CONNECT, an expectation or a target of an unknown kind).
Result<Asked> understand(const wire::Head& head);

/// The head for the instance: hop-by-hop lines out; Host, X-Forwarded-*, Via and the framing in.
std::string forwarded_head(const wire::Head& head, const Asked& asked, std::string_view client_address);

/// How the gate frames an answer for its client.
enum class Framing {
  none,    ///< no body follows (HEAD, 204, 304, an empty one)
  length,  ///< as announced by the instance
  chunked,
  until_close,  ///< for an HTTP/1.0 client and a body whose length nobody knows
};
Framing framing_for(const wire::Head& answer, int client_minor);

/// Who answered: named in every answer that was not made by the gate.
struct Answerer {
  std::string instance;
  Epoch epoch;
};

enum class ClientConnection { keep_alive, keep_alive_1_0, close };
std::string answer_head(const wire::Head& answer, Framing framing, ClientConnection connection,
                        const Answerer& answerer);
/// 102, 103 …: informational, passed on as they are.
std::string interim_head(const wire::Head& answer);
/// 101: the connection becomes a tunnel.
std::string switching_head(const wire::Head& answer, const Answerer& answerer);

/// An answer of the gate's own, whole. `body` false for HEAD.
std::string refusal(int status, Outcome outcome, std::string_view code, std::string_view message, bool retryable,
                    ClientConnection connection, bool body);

}  // namespace yado::gate
