#pragma once
// Which paths may stand in an image (docs/formats/image.md, "Names").

#include <string_view>

namespace yado::image {

inline constexpr std::string_view manifest_file = "manifest.json";

/// True for a relative path that stays inside: no empty, "." or ".." component, no control characters.
bool safe_path(std::string_view path);

}  // namespace yado::image
