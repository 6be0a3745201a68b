#pragma once
// What was written since an image was taken: left for the next main host, so that its first checkpoint may be a delta of that image.

#include <filesystem>

#include "base/error.hpp"
#include "image/page.hpp"
#include "pager/page_bits.hpp"

namespace yado::pager {

struct ChangedPages {
  image::CutId since;  ///< the image's
  PageBits pages;
};

/// A file in directory `part`.
Status write_changed_pages(const std::filesystem::path& part, const ChangedPages& changed);
/// Error corrupt also where it is of a memory of another size.
Result<ChangedPages> read_changed_pages(const std::filesystem::path& part, std::uint64_t guest_pages);

}  // namespace yado::pager
