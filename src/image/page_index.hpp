#pragma once
// The index of a part of pages: a value, and its bytes on the disk (docs/formats/pages.md, "pages.index"). Pure.

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"

namespace yado::image {

/// 4096 bytes of the log, at 4096 times its number.
using Slot = std::uint32_t;
inline constexpr Slot zero_slot = std::numeric_limits<Slot>::max();  ///< the page is zeros and lies nowhere

struct PageRecord {
  Slot slot = zero_slot;
  std::uint64_t checksum = 0;
  bool zero() const { return slot == zero_slot; }
  std::uint64_t log_offset() const { return std::uint64_t{slot} * page_bytes; }
  bool operator==(const PageRecord&) const = default;
};

/// 12 bytes per record, 16 per owned range and 24 per run. Immutable once made; reading it from several threads is
/// fine.
class PageIndex {
 public:
  struct Description {
    std::uint64_t guest_pages = 0;
    CutId cut;
    CutId base_cut;  ///< none: self-contained
    PageSet owned;
    bool operator==(const Description&) const = default;
  };
  /// Some pages in a row that have records: those at `position`, `position` + 1, …
  struct Run {
    PageRange pages;
    std::uint64_t position = 0;
    bool operator==(const Run&) const = default;
  };

  /// Takes records in ascending order of their pages; `finish` holds the result against the rules of the format.
  class Builder {
   public:
    explicit Builder(Description description);
    void add(PageNumber page, PageRecord record);
    /// `conflict` says which page breaks a rule: no record though it is owned, a record though it is not.
    Result<PageIndex> finish() &&;

   private:
    Description description_;
    std::vector<Run> runs_;
    std::vector<std::uint64_t> checksums_;
    std::vector<Slot> slots_;
  };

  /// Errors `corrupt` and `unsupported` say what is wrong and at which offset or page.
  static Result<PageIndex> from_bytes(std::string_view bytes);
  std::string to_bytes() const;

  const Description& description() const { return description_; }
  std::uint64_t guest_pages() const { return description_.guest_pages; }
  bool self_contained() const { return description_.base_cut.none(); }
  const std::vector<Run>& runs() const { return runs_; }
  std::uint64_t records() const { return slots_.size(); }
  /// Length of the log in slots.
  std::uint64_t log_slots() const { return log_slots_; }

  std::optional<PageRecord> find(PageNumber page) const;
  PageRecord at(std::uint64_t position) const { return {slots_[position], checksums_[position]}; }

  bool operator==(const PageIndex&) const = default;

 private:
  PageIndex() = default;
  Description description_;
  std::vector<Run> runs_;
  std::vector<std::uint64_t> checksums_;
  std::vector<Slot> slots_;
  std::uint64_t log_slots_ = 0;
};

}  // namespace yado::image
