#pragma once
// Answers of the agent's API, for its own files.

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"
#include "wire/http.hpp"

namespace yado::agent {

wire::Response reply(int status, const nlohmann::json& body);
wire::Response refusal(const Error& error);

}  // namespace yado::agent
