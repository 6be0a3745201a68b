#pragma once
// How every role's API answers (docs/api.md): JSON, and one shape for failures.
//
//   {"error": {"code": "stale-epoch", "number": 4, "message": "…", "retryable": false}}

#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"
#include "wire/http.hpp"

namespace yado::api {

/// The number of the API that `GET /v1/version` names.
inline constexpr int version = 1;

/// The HTTP status of an error: 4xx when the caller has to change something, 5xx when repeating it may help.
int status_of(Errc code);

wire::Response answer(const nlohmann::json& body, int status = 200);
wire::Response answer(const Error& error);

/// The answer's body as JSON; a failure's Error. An answer that is neither (a proxy's page, an answer broken off) is
/// `unavailable` when its status is 5xx: the call may or may not have taken effect; else `corrupt`.
Result<nlohmann::json> body_of(const wire::Response& response);

}  // namespace yado::api
