#pragma once
// Reading one finished part of pages (docs/formats/pages.md). What is read is compared with its checksum, always.
//
// Where it is not as it was written, its log's time is set to now: whoever verifies what has changed finds it.
// Errors name the part, the page and the offset in the log. Everything const is thread-safe.

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"
#include "image/page_index.hpp"
#include "os/fd.hpp"

namespace yado::image {

struct PlacedPage {
  PageNumber page{};
  PageRecord record;
  bool operator==(const PlacedPage&) const = default;
};

/// Contents, or none for a page of zeros. They are valid during the call. An error ends the scan and is returned.
using PageVisitor = std::function<Status(PageNumber, std::optional<PageContents>)>;

class PagePart;
/// Fills `bytes` with what the log of a part that is not here has from `offset` on. An error ends the scan and is returned.
using LogReader = std::function<Status(const PagePart&, std::uint64_t offset, std::span<std::byte> bytes)>;

class PagePart {
 public:
  enum class Log { here, elsewhere };
  /// `corrupt` without a valid index or with a log of another length. With `elsewhere` there is only the index:
  /// where pages lie is known, reading one is `unavailable`. `name`: for errors; empty: that of the directory. Of a directory whose place
  /// another takes meanwhile (image/chain.hpp, merge_chain) the index and the log are those of one of the two.
  static Result<PagePart> open(const std::filesystem::path& directory, Log log = Log::here, std::string name = {});

  const std::string& name() const { return name_; }
  const PageIndex& index() const { return index_; }
  bool has_log() const { return log_.valid(); }
  /// For mapping pages at `record.log_offset()`; whoever does compares `record.checksum` himself.
  const os::Fd& log() const { return log_; }

  /// `not_found` when the part has no record of the page.
  Status read(PageNumber page, PageBuffer contents) const;
  Status read(const PlacedPage& page, PageBuffer contents) const;

  /// Its records as they lie in the log, zeros last: 24 bytes each.
  std::vector<PlacedPage> in_file_order() const;
  /// Reads pages that are in file order, neighbours together in pieces of 1 MiB, past the page cache where that can be:
  /// a piece of the list per thread. `log`: reads pieces in place of the log here.
  Status scan(std::span<const PlacedPage> pages, const PageVisitor& visit, const LogReader& log = {}) const;
  /// Every record.
  Status verify() const;

 private:
  PagePart(std::string name, PageIndex index, os::Fd log, os::Fd bulk);
  static Result<PagePart> open_once(const std::filesystem::path& directory, Log log, std::string name);
  std::unexpected<Error> wrong(Errc code, const PlacedPage& page, std::string_view what) const;
  Status read_log(const os::Fd& log, std::span<std::byte> bytes, const PlacedPage& first) const;
  Status compare(const PlacedPage& page, PageContents contents) const;

  std::string name_;
  PageIndex index_;
  os::Fd log_;
  os::Fd bulk_;  ///< the same file, for scan
};

/// Sorts as PagePart::scan wants it.
void sort_in_file_order(std::vector<PlacedPage>& pages);

}  // namespace yado::image
