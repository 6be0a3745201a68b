#include "api/answer.hpp"

#include <nlohmann/json.hpp>

#include "api/fields.hpp"

namespace yado::api {

using nlohmann::json;

int status_of(Errc code) {
  switch (code) {
    case Errc::invalid_argument: return 400;
    case Errc::not_found: return 404;
    case Errc::permission: return 403;
    case Errc::already_exists:
    case Errc::stale_epoch:
    case Errc::not_owner:
    case Errc::conflict: return 409;
    case Errc::rate_limited: return 429;
    case Errc::unsupported: return 501;
    case Errc::refused:
    case Errc::application: return 502;
    case Errc::unavailable:
    case Errc::canceled: return 503;
    case Errc::timed_out: return 504;
    case Errc::no_space: return 507;
    case Errc::corrupt:
    case Errc::io:
    case Errc::internal: return 500;
  }
  return 500;
}

wire::Response answer(const json& body, int status) {
  wire::Response response;
  response.status = status;
  response.headers.emplace_back("content-type", "application/json");
  response.body = dump(body) + "\n";
  return response;
}

wire::Response answer(const Error& error) {
  return answer(json{{"error",
                      {{"code", name_of(error.code)},
                       {"number", static_cast<int>(error.code)},
                       {"message", error.message},
                       {"retryable", retryable(error.code)}}}},
                status_of(error.code));
}

Result<json> body_of(const wire::Response& response) {
  auto body = parse_json(response.body);
  if (response.status / 100 == 2) {
    if (body) return body;
    if (response.body.empty()) return json::object();
    return fail(Errc::corrupt, "the answer is not JSON: {}", body.error().message);
  }
  if (body && body->is_object())
    if (auto found = body->find("error"); found != body->end())
      if (auto error = from_json_value<Error>(*found)) return std::unexpected(std::move(*error));
  std::string first_line = response.body.substr(0, std::min<std::size_t>(response.body.find('\n'), 200));
  return fail(response.status / 100 == 5 ? Errc::unavailable : Errc::corrupt, "the peer answered {}{}{}",
              response.status, first_line.empty() ? "" : ": ", first_line);
}

}  // namespace yado::api
