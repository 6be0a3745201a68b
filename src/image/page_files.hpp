#pragma once
// Names of the files of a part of pages.

#include <string_view>

namespace yado::image {

inline constexpr std::string_view log_file = "pages.log";
inline constexpr std::string_view index_file = "pages.index";
inline constexpr std::string_view working_set_file = "working-set";

}  // namespace yado::image
