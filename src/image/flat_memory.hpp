#pragma once
// Memory as a plain sparse file, offset = 4096 * page number (docs/formats/pages.md, "Flat file"): what QEMU and others
// map as a guest's memory.

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "image/page_chain.hpp"

namespace yado::image {

/// Makes the file, which must not exist (0600), of the length of the guest; pages of zeros are holes. On the disk when
/// it returns; no file stays after an error. `on_page` is called for every page, those of zeros included.
Status export_flat(const PageChain& chain, const std::filesystem::path& file,
                   const std::function<void()>& on_page = {});

/// A piece of that file.
struct FlatPiece {
  PageNumber next{};                 ///< where the next one begins; guest_pages: this was the last
  std::vector<PageNumber> pages;     ///< those that are not zeros
  std::string contents;              ///< of them, one after the other
};
/// From `from` on, at most `most` pages that are not zeros.
Result<FlatPiece> flat_piece(const PageChain& chain, PageNumber from, std::size_t most);

/// Makes in the directory `part` a self-contained part that owns all pages. `invalid_argument` when the file's length
/// is no number of pages. Whoever writes into the file meanwhile gets a mixture.
Result<PageIndex> import_flat(const std::filesystem::path& file, const std::filesystem::path& part, const CutId& cut,
                              Caching caching = Caching::direct);

}  // namespace yado::image
