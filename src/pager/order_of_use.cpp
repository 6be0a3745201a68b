#include "pager/order_of_use.hpp"

#include "image/working_set.hpp"
#include "os/file.hpp"

namespace yado::pager {
namespace fs = std::filesystem;

namespace {

image::WorkingSet working_set(std::uint64_t guest_pages, const std::vector<PageNumber>& order) {
  image::WorkingSet used{.guest_pages = guest_pages, .pages = {}};
  for (const PageNumber page : order) used.pages.push_back(image::PageNumber{page});
  return used;
}

}  // namespace

Status write_order_of_use(const fs::path& part, std::uint64_t guest_pages, const std::vector<PageNumber>& order) {
  return image::write_working_set(part, working_set(guest_pages, order));
}

Status replace_order_of_use(const fs::path& file, std::uint64_t guest_pages, const std::vector<PageNumber>& order) {
  return os::replace_text(file, image::to_bytes(working_set(guest_pages, order)));
}

std::vector<PageNumber> prefetch_order(const ServiceConfig& config, const image::PageChain* chain) {
  std::vector<PageNumber> order;
  const auto add = [&](const Result<image::WorkingSet>& used) {
    if (!used || used->guest_pages != config.memory_bytes / page_bytes) return;  // advice: without it, too
    for (const image::PageNumber page : used->pages) order.push_back(image::value_of(page));
  };
  if (!config.use.empty())
    if (const auto bytes = os::read_text(config.use)) add(image::working_set_from_bytes(*bytes));
  if (chain != nullptr)
    for (const fs::path& part : config.image.back()) add(image::read_working_set(part));
  if (!config.left_in.empty()) add(image::read_working_set(config.left_in));
  if (chain == nullptr) return order;
  chain->visit([&](image::PageNumber page, const image::PagePart&, const image::PageRecord& record) {
    if (!record.zero()) order.push_back(image::value_of(page));
  });
  return order;
}

}  // namespace yado::pager
