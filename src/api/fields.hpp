#pragma once
// How JSON is read without exceptions and with the path of the field in every error. Heavy (includes
// nlohmann/json.hpp): for .cpp files that make types of their own readable:
//
//   void read_json(const nlohmann::json& json, const std::string& path, Status& status, RaiseCall& value) {
//     Fields(json, path, status).required("epoch", value.epoch).optional("way", value.way);
//   }
//   … api::parse<RaiseCall>(text) …
//
// `status` keeps the first thing that is wrong; the reads after it do nothing.

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "api/json.hpp"
#include "base/error.hpp"
#include "base/id.hpp"
#include "base/time.hpp"
#include "model/ids.hpp"
#include "model/names.hpp"

namespace yado {

// The model's values, for messages that contain them (found by argument-dependent lookup).
#define YADO_READS(T) void read_json(const nlohmann::json& json, const std::string& path, Status& status, T& value);
YADO_READS(Error)
YADO_READS(Mount)
YADO_READS(ContainerSpec)
YADO_READS(Split)
YADO_READS(MemoryHost)
YADO_READS(VmSpec)
YADO_READS(Readiness)
YADO_READS(Service)
YADO_READS(Policy)
YADO_READS(WorkloadSpec)
YADO_READS(Endpoint)
YADO_READS(InstanceReport)
YADO_READS(ImageReport)
YADO_READS(FenceReport)
YADO_READS(HostReport)
YADO_READS(RaiseTimes)
YADO_READS(Route)
YADO_READS(HostAddress)
YADO_READS(RouteTable)
#undef YADO_READS

}  // namespace yado

namespace yado::api {

/// The longest duration a message may carry: far above any use, far below where nanoseconds overflow (292 years).
inline constexpr milliseconds longest_duration = std::chrono::hours(24 * 366 * 100);

namespace detail {
void wrong(Status& status, const std::string& path, std::string_view what);
/// "a string", "an array" …: what stands there instead.
std::string_view kind_of(const nlohmann::json& json);
std::string quoted(const nlohmann::json& json);
void expected(Status& status, const std::string& path, std::string_view what, const nlohmann::json& found);
std::string member(const std::string& path, std::string_view key);
std::string element(const std::string& path, std::size_t index);
void read_integer(const nlohmann::json& json, const std::string& path, Status& status, std::uint64_t least_magnitude,
                  std::uint64_t most, std::uint64_t& magnitude, bool& negative);
}  // namespace detail

void read_json(const nlohmann::json& json, const std::string& path, Status& status, bool& value);
void read_json(const nlohmann::json& json, const std::string& path, Status& status, double& value);
void read_json(const nlohmann::json& json, const std::string& path, Status& status, std::string& value);
void read_json(const nlohmann::json& json, const std::string& path, Status& status, milliseconds& value);
/// Whole microseconds in JSON.
void read_json(const nlohmann::json& json, const std::string& path, Status& status, nanoseconds& value);
void read_json(const nlohmann::json& json, const std::string& path, Status& status, Epoch& value);
void read_json(const nlohmann::json& json, const std::string& path, Status& status, nlohmann::json& value);

template <class Integer>
requires(std::integral<Integer> && !std::same_as<Integer, bool>) void read_json(const nlohmann::json& json,
                                                                                const std::string& path, Status& status,
                                                                                Integer& value) {
  using Limits = std::numeric_limits<Integer>;
  std::uint64_t magnitude = 0;
  bool negative = false;
  const auto below = std::signed_integral<Integer> ? static_cast<std::uint64_t>(Limits::max()) + 1 : 0;
  detail::read_integer(json, path, status, below, static_cast<std::uint64_t>(Limits::max()), magnitude, negative);
  if (status) value = static_cast<Integer>(negative ? std::uint64_t{0} - magnitude : magnitude);
}

template <class Enum>
requires std::is_enum_v<Enum>
void read_json(const nlohmann::json& json, const std::string& path, Status& status, Enum& value) {
  std::string word;
  read_json(json, path, status, word);
  if (!status) return;
  if (auto known = from_name<Enum>(word))
    value = *known;
  else
    detail::wrong(status, path, fmt::format("{} is not a word known here", detail::quoted(json)));
}

/// An empty name means "none" (a route without an owner); `Fields::required` refuses it.
template <class Tag>
void read_json(const nlohmann::json& json, const std::string& path, Status& status, Name<Tag>& value) {
  std::string text;
  read_json(json, path, status, text);
  if (!status) return;
  if (!text.empty() && !valid_name(text))
    return detail::wrong(
        status, path, fmt::format("{} is not a valid name (a-z, 0-9, '-' and '.', at most 63)", detail::quoted(json)));
  value = Name<Tag>(std::move(text));
}

template <class T>
void read_json(const nlohmann::json& json, const std::string& path, Status& status, std::optional<T>& value);

template <class T>
void read_json(const nlohmann::json& json, const std::string& path, Status& status, std::vector<T>& value) {
  if (!json.is_array()) return detail::expected(status, path, "an array", json);
  std::vector<T> read;
  for (std::size_t i = 0; i < json.size() && status; ++i)
    read_json(json[i], detail::element(path, i), status, read.emplace_back());
  if (status) value = std::move(read);
}

template <class T>
void read_json(const nlohmann::json& json, const std::string& path, Status& status, std::map<std::string, T>& value) {
  if (!json.is_object()) return detail::expected(status, path, "an object", json);
  std::map<std::string, T> read;
  for (auto it = json.begin(); it != json.end() && status; ++it)
    read_json(it.value(), detail::member(path, it.key()), status, read[it.key()]);
  if (status) value = std::move(read);
}

template <class T>
void read_json(const nlohmann::json& json, const std::string& path, Status& status, std::optional<T>& value) {
  if (json.is_null()) {
    value.reset();
    return;
  }
  T read{};
  read_json(json, path, status, read);
  if (status) value = std::move(read);
}

/// One JSON object being read, field by field.
class Fields {
 public:
  Fields(const nlohmann::json& json, std::string path, Status& status)
      : json_(json), path_(std::move(path)), status_(status) {
    if (status_ && !json_.is_object()) detail::expected(status_, path_, "an object", json_);
  }

  /// Must be there, and a name must not be empty.
  template <class T>
  Fields& required(std::string_view key, T& value) {
    if (!status_) return *this;
    const auto found = json_.find(key);
    if (found == json_.end()) {
      detail::wrong(status_, detail::member(path_, key), "is missing");
      return *this;
    }
    read_json(*found, detail::member(path_, key), status_, value);
    if constexpr (requires {
                    value.empty();
                    value.str();
                  })
      if (status_ && value.empty()) detail::wrong(status_, detail::member(path_, key), "must not be empty");
    return *this;
  }

  /// Keeps what `value` holds when the key is missing or null.
  template <class T>
  Fields& optional(std::string_view key, T& value) {
    if (!status_) return *this;
    const auto found = json_.find(key);
    if (found != json_.end() && !found->is_null()) read_json(*found, detail::member(path_, key), status_, value);
    return *this;
  }

 private:
  const nlohmann::json& json_;
  std::string path_;
  Status& status_;
};

template <class T>
Result<T> from_json_value(const nlohmann::json& json) {
  T value{};
  Status status;
  read_json(json, std::string(), status, value);
  if (!status) return std::unexpected(std::move(status.error()));
  return value;
}

template <class T>
Result<T> parse(std::string_view text) {
  auto json = parse_json(text);
  if (!json) return std::unexpected(std::move(json.error()));
  return from_json_value<T>(*json);
}

}  // namespace yado::api
