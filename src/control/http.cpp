#include "control/http.hpp"

#include <charconv>

namespace yado::control {
namespace {

/// The text up to `separator`, which is taken off `rest` with it.
std::string_view next_part(std::string_view& rest, char separator) {
  const std::size_t end = rest.find(separator);
  const std::string_view part = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  return part;
}

}  // namespace

bool Target::flag(std::string_view key) const {
  auto found = query.find(key);
  return found != query.end() && (found->second == "1" || found->second == "true");
}

Result<std::uint64_t> Target::number(std::string_view key, std::uint64_t otherwise) const {
  auto found = query.find(key);
  if (found == query.end()) return otherwise;
  const std::string& text = found->second;
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return fail(Errc::invalid_argument, "?{}={}: not a whole number", key, text);
  return value;
}

// Names, words and numbers need no percent-encoding, so none is undone: an encoded one is simply not found.
Result<Target> parse_target(std::string_view target) {
  std::string_view query = target;
  std::string_view path = next_part(query, '?');
  constexpr std::string_view prefix = "/v1/";
  if (!path.starts_with(prefix)) return fail(Errc::not_found, "nothing is served at {}: paths start with /v1/", path);
  path.remove_prefix(prefix.size());
  if (path.ends_with('/')) path.remove_suffix(1);
  Target result;
  while (!path.empty()) result.path.emplace_back(next_part(path, '/'));
  while (!query.empty()) {
    std::string_view value = next_part(query, '&');
    const std::string_view key = next_part(value, '=');
    if (!key.empty()) result.query[std::string(key)] = value;
  }
  if (result.path.empty()) return fail(Errc::not_found, "nothing is served at {}", target);
  return result;
}

}  // namespace yado::control
