#pragma once
// In which order a guest's pages were in use: written beside an image or for the next main host, and read to fetch them in it.

#include <filesystem>
#include <vector>

#include "image/page_chain.hpp"
#include "pager/page.hpp"
#include "pager/service.hpp"

namespace yado::pager {

/// As a file of its own, all at once, in the place of another (image::Store::use_file).
Status replace_order_of_use(const std::filesystem::path& file, std::uint64_t guest_pages, const std::vector<PageNumber>& order);
/// Into directory `part`. `order`: the likeliest to be wanted first.
Status write_order_of_use(const std::filesystem::path& part, std::uint64_t guest_pages, const std::vector<PageNumber>& order);

/// The pages that were used in the first seconds after the image was taken, as far as that is known; those that were in use then; all others in their
/// order, which is that of a first round in its file.
/// `chain`: what is restored, or null.
std::vector<PageNumber> prefetch_order(const ServiceConfig& config, const image::PageChain* chain);

}  // namespace yado::pager
