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

// "3-5" is [3, 6).
std::optional<Range> first_and_last(std::string_view text) {
  const char* end = text.data() + text.size();
  Range range;
  std::uint64_t last = 0;
  const auto first = std::from_chars(text.data(), end, range.first);
  if (first.ec != std::errc{} || first.ptr == end || *first.ptr != '-') return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, last);
  if (second.ec != std::errc{} || second.ptr != end || last < range.first) return std::nullopt;
  range.end = last == UINT64_MAX ? last : last + 1;
  return range;
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
    auto range = first_and_last(header.substr(unit.size()));
    if (range && range->first < file_bytes) return Range{range->first, std::min(range->end, file_bytes)};
  }
  return fail(Errc::invalid_argument, "\"{}\" is no range of a file of {} bytes", header, file_bytes);
}

std::string range_header(Range range) { return fmt::format("bytes={}-{}", range.first, range.end - 1); }

std::string content_range(Range range, std::uint64_t file_bytes) {
  return fmt::format("bytes {}-{}/{}", range.first, range.end - 1, file_bytes);
}

Result<Range> parse_content_range(std::string_view header) {
  constexpr std::string_view unit = "bytes ";
  const auto slash = header.find('/');
  if (header.starts_with(unit) && slash != std::string_view::npos)
    if (const auto range = first_and_last(header.substr(unit.size(), slash - unit.size()))) return *range;
  return fail(Errc::corrupt, "\"{}\" is no content-range", header);
}

std::string data_header(const std::vector<Range>& data) {
  if (data.empty()) return "none";
  std::string text;
  for (const Range& range : data) text += fmt::format("{}{}-{}", text.empty() ? "" : ",", range.first, range.end - 1);
  return text;
}

Result<std::vector<Range>> parse_data_header(std::string_view header, Range covered) {
  std::vector<Range> data;
  if (header == "none") return data;
  std::uint64_t next = covered.first;
  for (std::size_t at = 0; at <= header.size();) {
    const std::size_t comma = std::min(header.find(',', at), header.size());
    const auto range = first_and_last(header.substr(at, comma - at));
    if (!range || range->first < next || range->end > covered.end)
      return fail(Errc::corrupt, "\"{}\" are no ranges inside {}", header.substr(0, 100), range_header(covered));
    data.push_back(*range);
    next = range->end;
    at = comma + 1;
  }
  return data;
}

}  // namespace yado::transfer
