#pragma once
// The URLs of images' files (transfer.hpp). Pure.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "model/ids.hpp"

namespace yado::transfer {

struct Target {
  ImageId image;
  std::string part;  ///< empty: the manifest
  std::string path;
  bool operator==(const Target&) const = default;
};

std::string manifest_target(const ImageId& image);
/// Everything but letters, digits, '-', '.', '_', '~' and '/' percent-encoded (RFC 3986, 2.3).
std::string file_target(const ImageId& image, std::string_view part, std::string_view path);
/// Nothing for what is no such URL or encoded wrongly. Says nothing of whether the names are safe: the store does.
std::optional<Target> parse_target(std::string_view target);

/// The bytes [first, end) of a file.
struct Range {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
  std::uint64_t bytes() const { return end - first; }
  bool operator==(const Range&) const = default;
};

/// "bytes=<first>-<last>", of which `first` must lie in the file; what lies behind its end is cut off. An empty
/// `header` is the whole file. Error `invalid_argument` for anything else, several ranges included (RFC 9110, 14.1.2).
Result<Range> parse_range(std::string_view header, std::uint64_t file_bytes);
std::string range_header(Range range);

/// The value of "content-range": "bytes 0-4/5".
std::string content_range(Range range, std::uint64_t file_bytes);
/// Its inverse, without the file's length. `corrupt` when it is none.
Result<Range> parse_content_range(std::string_view header);

/// At most so many ranges are in one "x-yado-data".
inline constexpr std::size_t max_data_ranges = 256;
/// The value of "x-yado-data" (transfer.hpp).
std::string data_header(const std::vector<Range>& data);
/// `corrupt` when they are not ascending, or not all in `covered`.
Result<std::vector<Range>> parse_data_header(std::string_view header, Range covered);

}  // namespace yado::transfer
