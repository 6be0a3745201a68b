#include "api/fields.hpp"

namespace yado::api {
namespace detail {

void wrong(Status& status, const std::string& path, std::string_view what) {
  if (status) status = fail(Errc::invalid_argument, "{}: {}", path.empty() ? "message" : path, what);
}

std::string_view kind_of(const nlohmann::json& json) {
  switch (json.type()) {
    case nlohmann::json::value_t::null:
      return "null";
    case nlohmann::json::value_t::object:
      return "an object";
    case nlohmann::json::value_t::array:
      return "an array";
    case nlohmann::json::value_t::string:
      return "a string";
    case nlohmann::json::value_t::boolean:
      return "true or false";
    default:
      return "a number";
  }
}

// Cut short: an error is one line, whatever a peer sends.
std::string quoted(const nlohmann::json& json) {
  std::string text = dump(json);
  if (text.size() <= 80) return text;
  std::size_t end = 77;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

void expected(Status& status, const std::string& path, std::string_view what, const nlohmann::json& found) {
  wrong(status, path, fmt::format("expected {}, found {}", what, kind_of(found)));
}

std::string member(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

std::string element(const std::string& path, std::size_t index) { return fmt::format("{}[{}]", path, index); }

void read_integer(const nlohmann::json& json, const std::string& path, Status& status, std::uint64_t least_magnitude,
                  std::uint64_t most, std::uint64_t& magnitude, bool& negative) {
  if (!json.is_number_integer()) {
    if (json.is_number()) return wrong(status, path, fmt::format("{} is not a whole number", quoted(json)));
    return expected(status, path, "a number", json);
  }
  negative = !json.is_number_unsigned() && json.get<std::int64_t>() < 0;
  magnitude =
      negative ? std::uint64_t{0} - static_cast<std::uint64_t>(json.get<std::int64_t>()) : json.get<std::uint64_t>();
  if (magnitude > (negative ? least_magnitude : most))
    wrong(
        status, path,
        fmt::format("{} is not between {}{} and {}", quoted(json), least_magnitude ? "-" : "", least_magnitude, most));
}

}  // namespace detail

void read_json(const nlohmann::json& json, const std::string& path, Status& status, bool& value) {
  if (!json.is_boolean()) return detail::expected(status, path, "true or false", json);
  value = json.get<bool>();
}

void read_json(const nlohmann::json& json, const std::string& path, Status& status, double& value) {
  if (!json.is_number()) return detail::expected(status, path, "a number", json);
  value = json.get<double>();
}

void read_json(const nlohmann::json& json, const std::string& path, Status& status, std::string& value) {
  if (!json.is_string()) return detail::expected(status, path, "a string", json);
  value = json.get_ref<const std::string&>();
}

void read_json(const nlohmann::json& json, const std::string& path, Status& status, milliseconds& value) {
  std::uint64_t magnitude = 0;
  bool negative = false;
  const auto most = static_cast<std::uint64_t>(longest_duration.count());
  detail::read_integer(json, path, status, 0, most, magnitude, negative);
  if (status) value = milliseconds(magnitude);
}

void read_json(const nlohmann::json& json, const std::string& path, Status& status, nanoseconds& value) {
  std::uint64_t magnitude = 0;
  bool negative = false;
  const auto most = static_cast<std::uint64_t>(std::chrono::microseconds(longest_duration).count());
  detail::read_integer(json, path, status, 0, most, magnitude, negative);
  if (status) value = std::chrono::microseconds(magnitude);
}

void read_json(const nlohmann::json& json, const std::string& path, Status& status, Epoch& value) {
  std::uint64_t number = 0;
  read_json(json, path, status, number);
  if (status) value = Epoch(number);
}

void read_json(const nlohmann::json& json, const std::string&, Status&, nlohmann::json& value) { value = json; }

}  // namespace yado::api
