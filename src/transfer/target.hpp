#pragma once
// The URLs of images' files (transfer.hpp). Pure.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

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
  bool operator==(const Range&) const = default;
};

/// "bytes=<first>-<last>", of which `first` must lie in the file; what lies behind its end is cut off. An empty
/// `header` is the whole file. Error `invalid_argument` for anything else, several ranges included (RFC 9110, 14.1.2).
Result<Range> parse_range(std::string_view header, std::uint64_t file_bytes);
std::string range_header(Range range);

}  // namespace yado::transfer
