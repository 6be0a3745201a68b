#include "transfer/target.hpp"

#include <algorithm>
#include <charconv>

namespace yado::transfer {
namespace {

constexpr std::string_view prefix = "/v1/images/";

bool plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
         c == '_' || c == '~' || c == '/';
}

std::optional<std::string> decode(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result += text[i];
      continue;
    }
    unsigned value = 0;
    if (i + 3 > text.size()) return std::nullopt;
    const char* end = text.data() + i + 3;
    if (std::from_chars(text.data() + i + 1, end, value, 16).ptr != end) return std::nullopt;
    result += static_cast<char>(value);
    i += 2;
  }
  return result;
}

// Up to the next '/', which is taken, too.
std::string_view take_component(std::string_view& text) {
  const auto slash = text.find('/');
  const std::string_view component = text.substr(0, slash);
  text.remove_prefix(slash == std::string_view::npos ? text.size() : slash + 1);
  return component;
}

}  // namespace

std::string manifest_target(const ImageId& image) { return fmt::format("{}{}/manifest", prefix, image); }

std::string file_target(const ImageId& image, std::string_view part, std::string_view path) {
  std::string result = fmt::format("{}{}/parts/{}/", prefix, image, part);
  for (char c : path) {
    if (plain(c))
      result += c;
    else
      result += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return result;
}

std::optional<Target> parse_target(std::string_view text) {
  if (!text.starts_with(prefix) || text.find('?') != std::string_view::npos) return std::nullopt;
  text.remove_prefix(prefix.size());
  Target target;
  target.image = ImageId(std::string(take_component(text)));
  const std::string_view what = take_component(text);
  if (what == "manifest" && text.empty()) return target;
  if (what != "parts") return std::nullopt;
  target.part = take_component(text);
  auto path = decode(text);
  if (target.part.empty() || !path || path->empty()) return std::nullopt;
  target.path = std::move(*path);
  return target;
}

Result<Range> parse_range(std::string_view header, std::uint64_t file_bytes) {
  if (header.empty()) return Range{0, file_bytes};
  constexpr std::string_view unit = "bytes=";
  if (header.starts_with(unit)) {
    const char* end = header.data() + header.size();
    Range range;
    std::uint64_t last = 0;
    const auto first = std::from_chars(header.data() + unit.size(), end, range.first);
    if (first.ec == std::errc{} && first.ptr != end && *first.ptr == '-') {
      const auto second = std::from_chars(first.ptr + 1, end, last);
      if (second.ec == std::errc{} && second.ptr == end && last >= range.first && range.first < file_bytes) {
        range.end = std::min(last, file_bytes - 1) + 1;
        return range;
      }
    }
  }
  return fail(Errc::invalid_argument, "\"{}\" is no range of a file of {} bytes", header, file_bytes);
}

std::string range_header(Range range) { return fmt::format("bytes={}-{}", range.first, range.end - 1); }

}  // namespace yado::transfer
