#pragma once
// Where a memory server's SAVE puts parts of pages, and where its LOAD finds them (docs/formats/pages.md).

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "image/page_chain.hpp"

namespace yado::pager {

/// Whose business it is what an image is. `session` is who asks: an archive refuses names that are not for it. Thread-safe.
class PageArchive {
 public:
  virtual ~PageArchive() = default;
  /// An empty directory, for this server's part of the draft. `base`: the image that it is a delta of, or empty.
  virtual Result<std::filesystem::path> begin(const std::string& session, const std::string& name, const std::string& base) = 0;
  /// The image is complete on all hosts. `index` is of the part in the directory. Returns what the image that came into being
  /// is known by, not empty (image.md, `members[].xxh128`).
  virtual Result<std::string> keep(const std::string& session, const std::string& name, const image::PageIndex& index) = 0;
  /// The draft goes, with its directory.
  virtual void abandon(const std::string& session, const std::string& name) = 0;
  /// The directory of an image: every directory in it with a pages.index is a part of it, those of other hosts without
  /// their logs perhaps.
  virtual Result<std::filesystem::path> open(const std::string& session, const std::string& name) = 0;
  /// How much of the disk a save may take, so that others get theirs. 0: all.
  virtual std::uint64_t bytes_per_second() const { return 0; }
};

/// Images as directories: <root>/<image>/pages-<holder>/, drafts as <root>/<image>/draft-<holder>/. Several holders may
/// share a root. Every session may have every image.
class DirectoryArchive : public PageArchive {
 public:
  DirectoryArchive(std::filesystem::path root, std::string holder) : root_(std::move(root)), holder_(std::move(holder)) {}

  Result<std::filesystem::path> begin(const std::string& session, const std::string& name, const std::string& base) override;
  Result<std::string> keep(const std::string& session, const std::string& name, const image::PageIndex& index) override;
  void abandon(const std::string& session, const std::string& name) override;
  Result<std::filesystem::path> open(const std::string& session, const std::string& name) override;

 private:
  std::filesystem::path root_;
  std::string holder_;
};

/// These images as one, the self-contained first. Errors as of PagePart::open and PageChain::make. Of several images all parts must be
/// here, at least their indices, unless only some pages are `chosen`: by who knows from all indices that their newest record is here.
enum class Pages { all, chosen };
Result<std::shared_ptr<const image::PageChain>> open_chain(PageArchive& archive, const std::string& session,
                                                           const std::vector<std::string>& names, Pages pages = Pages::all);

}  // namespace yado::pager
