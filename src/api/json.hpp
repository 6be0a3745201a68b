#pragma once
// The model's values as JSON: what the roles say to each other, what `--json` prints, what SQLite keeps.
//
// Writing: `nlohmann::json value = spec;` works for every type below (to_json is found by argument-dependent lookup);
// send it with `dump()`, never with json::dump(), which throws at text that is not UTF-8.
//
// Reading: `parse<HostReport>(text)`. Nothing throws: text that is no JSON, a wrong type, a number out of range, an
// unknown word or an invalid name is an Error `invalid_argument` that names the field:
//   "instances[2].endpoint.port: 70000 is not between 0 and 65535".
// Unknown keys are ignored and missing ones keep their defaults (peers of another version), except the names that say
// what the value is about.
//
// Units stand in the keys: `…_ms` whole milliseconds, RaiseTimes `…_us` whole microseconds. Enumerations are the words
// of model/names.hpp, epochs are plain numbers.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "model/cluster.hpp"
#include "model/workload.hpp"

namespace yado {

void to_json(nlohmann::json& json, const WorkloadSpec& value);
void to_json(nlohmann::json& json, const Split& value);
void to_json(nlohmann::json& json, const MemoryHost& value);
void to_json(nlohmann::json& json, const Service& value);
void to_json(nlohmann::json& json, const Endpoint& value);
void to_json(nlohmann::json& json, const InstanceReport& value);
void to_json(nlohmann::json& json, const ImageReport& value);
void to_json(nlohmann::json& json, const FenceReport& value);
void to_json(nlohmann::json& json, const HostReport& value);
void to_json(nlohmann::json& json, const RaiseTimes& value);
void to_json(nlohmann::json& json, const Route& value);
void to_json(nlohmann::json& json, const HostAddress& value);
void to_json(nlohmann::json& json, const RouteTable& value);
/// {"code": "stale-epoch", "message": "…"}
void to_json(nlohmann::json& json, const Error& value);

namespace api {

/// Any JSON text as a tree; Error `invalid_argument` with the byte at which it stops being JSON.
Result<nlohmann::json> parse_json(std::string_view text);
/// Compact text; bytes that are not UTF-8 come out as U+FFFD instead of an exception.
std::string dump(const nlohmann::json& json);
/// The same, indented: for people.
std::string dump_pretty(const nlohmann::json& json);

/// Defined for every type above; for types of your own see api/fields.hpp.
template <class T>
Result<T> from_json_value(const nlohmann::json& json);
template <class T>
Result<T> parse(std::string_view text);

}  // namespace api
}  // namespace yado
