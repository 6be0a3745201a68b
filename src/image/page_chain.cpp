#include "image/page_chain.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "image/pass.hpp"

namespace yado::image {
namespace {

using Image = std::vector<PagePart>;

struct Share {
  PageRange pages;
  const PagePart* part;
};

// Every page of the guest belongs to exactly one part, or, of some of the parts, to one at most.
Status check_shares(const Image& image, std::uint64_t guest_pages, PageChain::Coverage coverage) {
  std::vector<Share> shares;
  for (const PagePart& part : image)
    for (const PageRange& range : part.index().description().owned) shares.push_back({range, &part});
  std::ranges::sort(shares, {}, [](const Share& share) { return share.pages.begin(); });
  std::uint64_t next = 0;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const Share& share = shares[i];
    if (share.pages.begin() < next)
      return fail(Errc::conflict, "page {} belongs to {} and to {}", share.pages.first, shares[i - 1].part->name(),
                  share.part->name());
    if (share.pages.begin() > next && coverage == PageChain::Coverage::whole) break;
    next = share.pages.end();
  }
  if (coverage == PageChain::Coverage::some) return {};
  if (next != guest_pages) return fail(Errc::conflict, "page {} belongs to no part", next);
  return {};
}

Status check_image(const Image& image, const CutId& base, std::uint64_t guest_pages, PageChain::Coverage coverage) {
  for (const PagePart& part : image) {
    const PageIndex::Description& it = part.index().description();
    if (it.guest_pages != guest_pages)
      return fail(Errc::conflict, "part {}: a guest of {} pages, not of {}", part.name(), it.guest_pages, guest_pages);
    if (it.cut != image.front().index().description().cut)
      return fail(Errc::conflict, "part {}: of another cut than part {}", part.name(), image.front().name());
    // A share that was merged answers for all its pages by itself, whatever the others of its image do.
    if (it.base_cut == base || it.base_cut.none() || coverage == PageChain::Coverage::some) continue;
    if (base.none()) return fail(Errc::conflict, "part {}: is a delta, and its base is not there", part.name());
    return fail(Errc::conflict, "part {}: its base is the cut {}, not {}", part.name(), it.base_cut.hex(), base.hex());
  }
  return check_shares(image, guest_pages, coverage);
}

Status check(const std::vector<Image>& images, PageChain::Coverage coverage) {
  if (images.empty()) return fail(Errc::invalid_argument, "a chain of no image");
  if (images.size() > PageChain::max_images)
    return fail(Errc::invalid_argument, "a chain of {} images; at most {}: merge it before it grows", images.size(),
                PageChain::max_images);
  CutId base;
  for (std::size_t i = 0; i < images.size(); ++i) {
    const std::string doing = fmt::format("image {} of {} in the chain", i + 1, images.size());
    if (images[i].empty()) return fail(Errc::invalid_argument, "{}: no part", doing);
    YADO_TRY(check_image(images[i], base, images[0].front().index().guest_pages(), coverage), doing);
    base = images[i].front().index().description().cut;
  }
  return {};
}

}  // namespace

PageChain::PageChain(std::vector<Image> images, std::vector<Segment> segments)
    : images_(std::move(images)), segments_(std::move(segments)) {}

Result<PageChain> PageChain::make(std::vector<Image> images, Coverage coverage) {
  YADO_PASS(check(images, coverage));
  std::vector<Segment> segments;
  for (std::size_t i = images.size(); i-- > 0;) segments = overlay(segments, segments_of(images[i]));
  return PageChain(std::move(images), std::move(segments));  // the parts stay where they are
}

std::vector<PageChain::Segment> PageChain::segments_of(const Image& image) {
  std::vector<Segment> segments;
  for (const PagePart& part : image)
    for (const PageIndex::Run& run : part.index().runs()) segments.push_back({run.pages, &part, run.position});
  std::ranges::sort(segments, {}, [](const Segment& segment) { return segment.pages.begin(); });
  return segments;
}

// `newer`, and of `older` what shows between. Both ascending, neither overlaps itself.
std::vector<PageChain::Segment> PageChain::overlay(const std::vector<Segment>& newer,
                                                   const std::vector<Segment>& older) {
  std::vector<Segment> result;
  auto above = newer.begin();
  for (const Segment& segment : older) {
    // What came before may reach over this one's beginning.
    std::uint64_t from = std::max(segment.pages.begin(), result.empty() ? 0 : result.back().pages.end());
    const auto show_up_to = [&](std::uint64_t to) {
      if (from >= to) return;
      result.push_back({{PageNumber{from}, to - from}, segment.part, segment.position + from - segment.pages.begin()});
    };
    for (; above != newer.end() && above->pages.begin() < segment.pages.end(); ++above) {
      show_up_to(above->pages.begin());
      from = std::max(from, above->pages.end());
      result.push_back(*above);
    }
    show_up_to(segment.pages.end());
  }
  result.insert(result.end(), above, newer.end());
  return result;
}

std::vector<const PagePart*> PageChain::parts() const {
  std::vector<const PagePart*> parts;
  for (const Image& image : images_)
    for (const PagePart& part : image) parts.push_back(&part);
  return parts;
}

const PageChain::Segment* PageChain::segment_of(PageNumber page) const {
  const auto after = std::ranges::upper_bound(segments_, value_of(page), {},
                                              [](const Segment& segment) { return segment.pages.begin(); });
  if (after == segments_.begin() || value_of(page) >= std::prev(after)->pages.end()) return nullptr;
  return &*std::prev(after);
}

PageChain::Place PageChain::find(PageNumber page) const {
  const Segment* segment = segment_of(page);
  YADO_CHECK(segment, "page {} of a guest of {} pages is asked for, and is not here", page, guest_pages());
  const std::uint64_t position = segment->position + value_of(page) - segment->pages.begin();
  return {segment->part, {page, segment->part->index().at(position)}};
}

Status PageChain::read(PageNumber page, PageBuffer contents) const {
  const Place place = find(page);
  return place.part->read(place.page, contents);
}

PageSet PageChain::here() const {
  std::vector<PageRange> ranges;
  for (const Segment& segment : segments_)
    if (segment.part->has_log()) ranges.push_back(segment.pages);
  return normalised(std::move(ranges));
}

PageSet PageChain::newest_in(const PagePart& part) const {
  std::vector<PageRange> ranges;
  for (const Segment& segment : segments_)
    if (segment.part == &part) ranges.push_back(segment.pages);
  return normalised(std::move(ranges));
}

std::vector<PlacedPage> PageChain::live(const PagePart& part) const {
  std::vector<PlacedPage> pages;
  for (const Segment& segment : segments_) {
    if (segment.part != &part) continue;
    for (std::uint64_t i = 0; i < segment.pages.count; ++i)
      pages.push_back({PageNumber{segment.pages.begin() + i}, part.index().at(segment.position + i)});
  }
  sort_in_file_order(pages);
  return pages;
}

Result<PageIndex> merge(const PageChain& chain, const std::filesystem::path& part, const MergeOptions& options) {
  YADO_TAKE(
      PageWriter writer,
      PageWriter::create(part, {.guest_pages = chain.guest_pages(), .cut = chain.cut(), .caching = options.caching}));
  PageAppender appender = writer.appender();
  std::uint64_t untold = 0;
  const PageVisitor copy = [&](PageNumber page, std::optional<PageContents> contents) -> Status {
    if (options.stop.stop_requested()) return fail(Errc::canceled, "merge into {}: stopped", part.native());
    if (!contents) return appender.put_zeros(page, Round{0});
    YADO_PASS(appender.put(page, *contents, Round{0}));
    untold += page_bytes;
    return options.copied && untold >= extent_slots * page_bytes ? options.copied(std::exchange(untold, 0)) : Status();
  };
  for (const PagePart* source : chain.parts()) {
    std::vector<PlacedPage> pages = chain.live(*source);
    std::erase_if(pages, [&](const PlacedPage& page) { return !contains(options.owned, page.page); });
    YADO_PASS(source->scan(pages, copy, source->has_log() ? LogReader() : options.elsewhere));
  }
  YADO_PASS(appender.flush());
  return writer.finish(options.owned);
}

}  // namespace yado::image
