#include "image/page_index.hpp"

#include <algorithm>

#include "image/sealed.hpp"

namespace yado::image {
namespace {

constexpr std::string_view magic = "yadopage";
constexpr std::uint32_t version = 1;

struct Header {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t page_bytes;
  CutId cut;
  CutId base_cut;
  std::uint64_t guest_pages;
  std::uint64_t log_slots;
  std::uint64_t owned;
  std::uint64_t runs;
  std::uint64_t records;
};
static_assert(sizeof(Header) == 88);

std::unexpected<Error> corrupt(std::string_view what) { return fail(Errc::corrupt, "{}", what); }

PageSet pages_of(const std::vector<PageIndex::Run>& runs) {
  PageSet set;
  set.reserve(runs.size());
  for (const PageIndex::Run& run : runs) set.push_back(run.pages);
  return set;
}

// The first page of `pages` that is not in `set`. Both in the form of a set.
std::optional<PageNumber> first_outside(const PageSet& pages, const PageSet& set) {
  auto at = set.begin();
  for (const PageRange& range : pages) {
    while (at != set.end() && at->end() <= range.begin()) ++at;
    if (at == set.end() || at->begin() > range.begin()) return range.first;
    if (at->end() < range.end()) return PageNumber{at->end()};
  }
  return std::nullopt;
}

// What docs/formats/pages.md asks of a description and the pages that have records, in words for people.
std::string broken_rule(const PageIndex::Description& description, const PageSet& pages) {
  if (description.guest_pages == 0 || description.guest_pages > max_guest_pages)
    return fmt::format("a guest of {} pages", description.guest_pages);
  if (description.cut.none()) return "the cut has no name";
  if (description.cut == description.base_cut) return "its own cut is given as its base";
  if (!well_formed(description.owned, description.guest_pages)) return "the owned ranges are not in order";
  if (!well_formed(pages, description.guest_pages)) return "the runs of records are not in order";
  if (const auto page = first_outside(pages, description.owned))
    return fmt::format("page {} has a record, but is not owned", *page);
  if (!description.base_cut.none()) return {};
  if (const auto page = first_outside(description.owned, pages))
    return fmt::format("page {} is owned, but has no record", *page);
  return {};
}

}  // namespace

PageIndex::Builder::Builder(Description description) : description_(std::move(description)) {}

void PageIndex::Builder::add(PageNumber page, PageRecord record) {
  if (runs_.empty() || runs_.back().pages.end() != value_of(page))
    runs_.push_back({.pages = {page, 0}, .position = slots_.size()});
  ++runs_.back().pages.count;
  checksums_.push_back(record.checksum);
  slots_.push_back(record.slot);
}

Result<PageIndex> PageIndex::Builder::finish() && {
  if (const std::string rule = broken_rule(description_, pages_of(runs_)); !rule.empty())
    return fail(Errc::conflict, "{}", rule);
  PageIndex index;
  index.description_ = std::move(description_);
  index.runs_ = std::move(runs_);
  index.checksums_ = std::move(checksums_);
  index.slots_ = std::move(slots_);
  for (const Slot slot : index.slots_)
    if (slot != zero_slot) index.log_slots_ = std::max(index.log_slots_, std::uint64_t{slot} + 1);
  return index;
}

Result<PageIndex> PageIndex::from_bytes(std::string_view bytes) {
  if (bytes.size() < sizeof(Header) + sizeof(Seal))
    return fail(Errc::corrupt, "{} bytes: too short, it was not finished", bytes.size());
  Reader reader(bytes);
  const Header header = reader.take<Header>();
  if (std::string_view(header.magic.data(), header.magic.size()) != magic) return corrupt("no index of pages");
  if (header.version != version)
    return fail(Errc::unsupported, "version {}: this yado reads version {}", header.version, version);
  // No count can be larger than the file; so their sum cannot overflow, and nothing below takes more memory than it.
  if (std::max({header.owned, header.runs, header.records}) > bytes.size()) return corrupt("counts beyond its length");
  const std::uint64_t length = sizeof(Header) + 16 * (header.owned + header.runs) + 12 * header.records + sizeof(Seal);
  if (bytes.size() != length)
    return fail(Errc::corrupt, "{} bytes instead of {}: it was cut or not finished", bytes.size(), length);
  if (!sealed(bytes)) return corrupt("checksum differs");
  if (header.page_bytes != page_bytes) return fail(Errc::unsupported, "pages of {} bytes", header.page_bytes);

  Description description{header.guest_pages, header.cut, header.base_cut, PageSet(header.owned)};
  reader.take(std::span(description.owned));
  PageSet pages(header.runs);
  reader.take(std::span(pages));
  if (const std::string rule = broken_rule(description, pages); !rule.empty()) return corrupt(rule);
  if (count_of(pages) != header.records)
    return fail(Errc::corrupt, "{} records for {} pages", header.records, count_of(pages));

  PageIndex index;
  index.description_ = std::move(description);
  index.log_slots_ = header.log_slots;
  index.runs_.reserve(pages.size());
  std::uint64_t position = 0;
  for (const PageRange& range : pages) {
    index.runs_.push_back({range, position});
    position += range.count;
  }
  index.checksums_.resize(header.records);
  reader.take(std::span(index.checksums_));
  index.slots_.resize(header.records);
  reader.take(std::span(index.slots_));

  std::uint64_t highest = 0;
  for (std::uint64_t i = 0; i < index.records(); ++i) {
    const PageRecord record = index.at(i);
    if (!record.zero())
      highest = std::max(highest, std::uint64_t{record.slot} + 1);
    else if (record.checksum != checksum_of_zeros())
      return fail(Errc::corrupt, "record {}: zeros with the checksum of something else", i);
  }
  if (highest != header.log_slots)
    return fail(Errc::corrupt, "a log of {} slots, of which {} are used", header.log_slots, highest);
  return index;
}

std::string PageIndex::to_bytes() const {
  Header header{.version = version,
                .page_bytes = page_bytes,
                .cut = description_.cut,
                .base_cut = description_.base_cut,
                .guest_pages = description_.guest_pages,
                .log_slots = log_slots_,
                .owned = description_.owned.size(),
                .runs = runs_.size(),
                .records = records()};
  std::ranges::copy(magic, header.magic.begin());
  std::string bytes;
  bytes.reserve(sizeof header + 16 * (header.owned + header.runs) + 12 * header.records + sizeof(Seal));
  append(bytes, header);
  append(bytes, std::span<const PageRange>(description_.owned));
  for (const Run& run : runs_) append(bytes, run.pages);
  append(bytes, std::span<const std::uint64_t>(checksums_));
  append(bytes, std::span<const Slot>(slots_));
  append_seal(bytes);
  return bytes;
}

std::optional<PageRecord> PageIndex::find(PageNumber page) const {
  const auto after =
      std::ranges::upper_bound(runs_, value_of(page), {}, [](const Run& run) { return run.pages.begin(); });
  if (after == runs_.begin()) return std::nullopt;
  const Run& run = *std::prev(after);
  if (value_of(page) >= run.pages.end()) return std::nullopt;
  return at(run.position + value_of(page) - run.pages.begin());
}

}  // namespace yado::image
