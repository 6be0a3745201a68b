#include "pager/order_of_use.hpp"

#include "image/working_set.hpp"

namespace yado::pager {
namespace fs = std::filesystem;

Status write_order_of_use(const fs::path& part, std::uint64_t guest_pages, const std::vector<PageNumber>& order) {
  image::WorkingSet used{.guest_pages = guest_pages, .pages = {}};
  for (const PageNumber page : order) used.pages.push_back(image::PageNumber{page});
  return image::write_working_set(part, used);
}

std::vector<PageNumber> prefetch_order(const ServiceConfig& config, const image::PageChain* chain) {
  std::vector<PageNumber> order;
  std::vector<fs::path> parts = chain != nullptr ? config.image.back() : std::vector<fs::path>();
  if (!config.left_in.empty()) parts.push_back(config.left_in);
  for (const fs::path& part : parts)
    if (const auto used = image::read_working_set(part))
      for (const image::PageNumber page : used->pages) order.push_back(image::value_of(page));
  if (chain == nullptr) return order;
  chain->visit([&](image::PageNumber page, const image::PagePart&, const image::PageRecord& record) {
    if (!record.zero()) order.push_back(image::value_of(page));
  });
  return order;
}

}  // namespace yado::pager
