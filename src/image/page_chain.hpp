#pragma once
// What a guest was at the newest cut of a chain: base and deltas seen as one (docs/formats/pages.md, "Chains").

#include <cstdint>
#include <filesystem>
#include <stop_token>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"
#include "image/page_part.hpp"
#include "image/page_writer.hpp"

namespace yado::image {

/// Immutable once made, and thread-safe. Takes 32 bytes per stretch of pages that lie in one part, beside the indices.
class PageChain {
 public:
  static constexpr std::size_t max_images = 16;
  struct Place {
    const PagePart* part;  ///< valid as long as the chain
    PlacedPage page;
  };

  /// The parts of each image, the self-contained one first. `conflict` says which images do not follow each other, or
  /// which page belongs to no part or to two; `invalid_argument` for a chain that is too long, or none.
  /// `some`: whatever parts there are. Of several images only who knows from elsewhere (all indices) that the newest record of a page is
  /// among them may ask for it: a part that is missing may hold what is newer.
  enum class Coverage { whole, some };
  static Result<PageChain> make(std::vector<std::vector<PagePart>> images, Coverage coverage = Coverage::whole);

  std::uint64_t guest_pages() const { return newest().guest_pages; }
  const CutId& cut() const { return newest().cut; }
  std::vector<const PagePart*> parts() const;

  /// False only for `some`.
  bool has(PageNumber page) const { return segment_of(page) != nullptr; }
  /// The newest record. The chain has `page`.
  Place find(PageNumber page) const;
  Status read(PageNumber page, PageBuffer contents) const;
  /// The newest record of every page, in the order of pages: visit(PageNumber, const PagePart&, const PageRecord&). Far less work than
  /// to find one after the other.
  template <class Visit>
  void visit(Visit visit) const {
    for (const Segment& segment : segments_)
      for (std::uint64_t i = 0; i < segment.pages.count; ++i)
        visit(PageNumber{segment.pages.begin() + i}, *segment.part, segment.part->index().at(segment.position + i));
  }
  /// Pages whose newest record is one of a part whose log is here.
  PageSet here() const;
  /// Of one of its parts.
  PageSet newest_in(const PagePart& part) const;
  /// Those records of one of its parts that nothing newer supersedes, for PagePart::scan.
  std::vector<PlacedPage> live(const PagePart& part) const;

 private:
  struct Segment {
    PageRange pages;
    const PagePart* part;
    std::uint64_t position;  ///< of the first, in the part's index
  };
  const Segment* segment_of(PageNumber page) const;
  PageChain(std::vector<std::vector<PagePart>> images, std::vector<Segment> segments);
  static std::vector<Segment> segments_of(const std::vector<PagePart>& image);
  static std::vector<Segment> overlay(const std::vector<Segment>& newer, const std::vector<Segment>& older);
  const PageIndex::Description& newest() const { return images_.back().front().index().description(); }

  std::vector<std::vector<PagePart>> images_;
  std::vector<Segment> segments_;  ///< ascending, without a gap from page 0 to the last
};

struct MergeOptions {
  PageSet owned;  ///< what the new part answers for: all_pages(), or the share of one host
  Caching caching = Caching::direct;
  std::stop_token stop;  ///< looked at between pages; then `canceled`, and no file stays
  LogReader elsewhere;   ///< reads the logs that are not here; without it a page of them is `unavailable`
  /// Told of about every MiB that was copied; may wait, and an error ends the merge.
  std::function<Status(std::uint64_t bytes)> copied;
};

/// Makes in the directory `part` a self-contained part of the chain's cut. Reads live records only, one part of the
/// chain after the other, each in the order of its file.
Result<PageIndex> merge(const PageChain& chain, const std::filesystem::path& part, const MergeOptions& options);

}  // namespace yado::image
