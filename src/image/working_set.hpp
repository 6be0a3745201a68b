#pragma once
// In which order pages were used after a cut: advice for prefetching (docs/formats/pages.md, "working-set").

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"

namespace yado::image {

struct WorkingSet {
  std::uint64_t guest_pages = 0;
  std::vector<PageNumber> pages;  ///< first used first; the first mention counts
  bool operator==(const WorkingSet&) const = default;
};

std::string to_bytes(const WorkingSet& working_set);
Result<WorkingSet> working_set_from_bytes(std::string_view bytes);

/// Beside the log and the index of a part, before its image is committed. `already_exists` when there is one.
Status write_working_set(const std::filesystem::path& part, const WorkingSet& working_set);
/// `not_found` when none was recorded.
Result<WorkingSet> read_working_set(const std::filesystem::path& part);

}  // namespace yado::image
