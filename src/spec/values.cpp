#include "spec/values.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>
#include <vector>

namespace yado::spec {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t factor;
};

constexpr Unit time_units[] = {{"ms", 1}, {"s", 1000}, {"min", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}};
constexpr Unit size_units[] = {{"B", 1},
                               {"KiB", std::uint64_t{1} << 10},
                               {"MiB", std::uint64_t{1} << 20},
                               {"GiB", std::uint64_t{1} << 30},
                               {"TiB", std::uint64_t{1} << 40}};
constexpr std::uint64_t longest_ms = 10ULL * 366 * 86'400'000;
constexpr std::uint64_t largest_bytes = std::uint64_t{1} << 60;

// The number in front and the unit behind it; nothing when there is no such shape or the number does not fit.
std::optional<std::uint64_t> scaled(std::string_view text, std::span<const Unit> units, std::uint64_t most) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  const std::string_view name(end, static_cast<std::size_t>(text.data() + text.size() - end));
  for (const Unit& unit : units)
    if (unit.name == name && number <= most / unit.factor) return number * unit.factor;
  return std::nullopt;
}

/// "1.5GiB" is 1536 of the next smaller unit: up to three digits behind the point, if that is a whole number of bytes.
std::optional<std::uint64_t> scaled_decimal(std::string_view text, std::uint64_t most) {
  const auto point = text.find('.');
  if (point == std::string_view::npos) return scaled(text, size_units, most);
  const auto digits = text.find_first_not_of("0123456789", point + 1) - (point + 1);
  if (digits < 1 || digits > 3) return std::nullopt;
  const std::uint64_t tenths = digits == 1 ? 10 : digits == 2 ? 100 : 1000;
  const auto whole = scaled(std::string(text.substr(0, point)) + std::string(text.substr(point + 1)), size_units, most);
  if (!whole || point == 0 || *whole % tenths != 0) return std::nullopt;
  return *whole / tenths;
}

bool name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool name_rest(char c) { return name_start(c) || (c >= '0' && c <= '9'); }

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replace = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replace, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

Result<milliseconds> parse_duration(std::string_view text) {
  const auto ms = scaled(text, time_units, longest_ms);
  if (!ms || *ms == 0)
    return fail(Errc::invalid_argument,
                "{} is not a duration: a whole number above 0 and ms, s, min, h or d, such as \"250ms\" or \"10min\"",
                quote(text));
  return milliseconds(*ms);
}

Result<std::uint64_t> parse_size(std::string_view text) {
  const auto bytes = scaled_decimal(text, largest_bytes);
  if (!bytes)
    return fail(Errc::invalid_argument,
                "{} is not a size: a number and B, KiB, MiB, GiB or TiB, such as \"512MiB\" or \"1.5GiB\"", quote(text));
  return *bytes;
}

Result<std::uint64_t> parse_bytes_per_second(std::string_view text) {
  constexpr std::string_view per_second = "/s";
  const auto bytes = text.ends_with(per_second) ? scaled(text.substr(0, text.size() - per_second.size()), size_units, largest_bytes) : std::nullopt;
  if (!bytes || *bytes == 0) return fail(Errc::invalid_argument, "{} is not a rate: a size and \"/s\", such as \"50MiB/s\"", quote(text));
  return *bytes;
}

Result<MemoryHost> parse_memory_host(std::string_view text) {
  const auto colon = text.find(':');
  MemoryHost host{.host = HostId(std::string(text.substr(0, colon))), .address = {}};
  if (!valid_name(host.host.str())) return fail(Errc::invalid_argument, "{} is no host's name", quote(text.substr(0, colon)));
  if (colon == std::string_view::npos) return host;
  YADO_ASSIGN(host.bytes, parse_size(text.substr(colon + 1)), host.host.str());
  if (host.bytes == 0) return fail(Errc::invalid_argument, "{} keeps nothing with a size of 0: leave it out", quote(text));
  return host;
}

Result<Rate> parse_rate(std::string_view text) {
  const auto slash = text.find('/');
  if (slash != std::string_view::npos) {
    std::uint32_t count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + slash, count);
    std::string per(text.substr(slash + 1));
    if (!per.empty() && (per[0] < '0' || per[0] > '9')) per.insert(0, "1");
    const auto ms = scaled(per, time_units, longest_ms);
    if (error == std::errc{} && end == text.data() + slash && count > 0 && ms && *ms > 0)
      return Rate{count, milliseconds(*ms)};
  }
  return fail(Errc::invalid_argument, "{} is not a rate: a count above 0, '/' and a duration, such as \"10/min\"",
              quote(text));
}

Result<std::string> expand(std::string_view text, const Environment& environment) {
  std::string result;
  while (!text.empty()) {
    const auto dollar = text.find('$');
    result += text.substr(0, dollar);
    if (dollar == std::string_view::npos) break;
    text.remove_prefix(dollar);
    if (text.starts_with("$${")) {
      result += "${";
      text.remove_prefix(3);
    } else if (text.starts_with("${")) {
      const auto end = text.find('}');
      if (end == std::string_view::npos)
        return fail(Errc::invalid_argument, "{} has no closing brace (write \"$${{\" for a plain \"${{\")",
                    quote(text));
      const std::string name(text.substr(2, end - 2));
      if (name.empty() || !name_start(name[0]) || !std::ranges::all_of(name, name_rest))
        return fail(Errc::invalid_argument,
                    "{} is not a variable: letters, digits and '_' only (write \"$${{\" for a plain \"${{\")",
                    quote(text.substr(0, end + 1)));
      const auto found = environment.find(name);
      if (found == environment.end()) return fail(Errc::invalid_argument, "the variable {} is not set", quote(name));
      result += found->second;
      text.remove_prefix(end + 1);
    } else {
      result += '$';
      text.remove_prefix(1);
    }
  }
  return result;
}

std::string_view nearest(std::string_view text, std::span<const std::string_view> candidates) {
  if (text.size() > 40) return {};
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(1, text.size() / 3) + 1;  // further away is another word
  for (std::string_view candidate : candidates) {
    const std::size_t distance = edit_distance(text, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string printable(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      result += c;
  }
  return result;
}

std::string quote(std::string_view text) {
  constexpr std::size_t longest = 60;
  std::size_t end = std::min(text.size(), longest);
  while (end > 0 && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80)
    --end;  // not inside a UTF-8 character
  std::string escaped;
  for (char c : text.substr(0, end)) {
    if (c == '"' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return fmt::format("\"{}{}\"", printable(escaped), end < text.size() ? "..." : "");
}

}  // namespace yado::spec
