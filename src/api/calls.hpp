#pragma once
// Calls to agents, their replies and events as JSON. A call's kind stands in the URL (`name_of(call)`: "raise",
// "drop-image"), its JSON is the body; rules as in api/json.hpp.

#include <string_view>

#include "api/json.hpp"
#include "model/calls.hpp"

namespace yado {

void to_json(nlohmann::json& json, const AgentCall& value);
void to_json(nlohmann::json& json, const CallReply& value);
void to_json(nlohmann::json& json, const Event& value);
void to_json(nlohmann::json& json, const StopCall& value);
void to_json(nlohmann::json& json, const DropImageCall& value);

namespace api {

/// The call of that kind; Error `not_found` for a kind there is not.
Result<AgentCall> parse_call(std::string_view kind, std::string_view body);
/// Also `parse<CallReply>`, `parse<Event>`, `parse<StopCall>`, `parse<DropImageCall>` (api/json.hpp).

}  // namespace api
}  // namespace yado
