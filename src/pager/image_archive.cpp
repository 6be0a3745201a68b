#include "pager/image_archive.hpp"

#include <algorithm>

#include "base/id.hpp"
#include "image/disk.hpp"

namespace yado::pager {
namespace fs = std::filesystem;
namespace {

Status check_name(const std::string& name) {
  if (valid_name(name)) return {};
  return fail(Errc::invalid_argument, "\"{}\" is no name of an image", name);
}

std::unexpected<Error> failed(const std::error_code& error, std::string_view doing, const fs::path& path) {
  return fail_errno(error.value(), fmt::format("{} {}", doing, path.native()));
}

}  // namespace

Result<fs::path> DirectoryArchive::begin(const std::string&, const std::string& name, const std::string&) {
  if (auto good = check_name(name); !good) return std::unexpected(good.error());
  const fs::path part = root_ / name / ("draft-" + holder_);
  std::error_code error;
  if (fs::exists(root_ / name / ("pages-" + holder_), error))
    return fail(Errc::already_exists, "image {} exists: images are never changed, choose another name", name);
  fs::remove_all(part, error);  // of a server that died: nobody else writes it
  if (error || !fs::create_directories(part, error)) return failed(error, "make", part);
  return part;
}

Result<std::string> DirectoryArchive::keep(const std::string&, const std::string& name, const image::PageIndex& index) {
  std::error_code error;
  const fs::path image = root_ / name;
  fs::rename(image / ("draft-" + holder_), image / ("pages-" + holder_), error);
  if (error) return failed(error, "keep the draft in", image);
  for (const fs::path& directory : {image, root_})
    if (auto synced = image::sync_directory(directory); !synced) return std::unexpected(synced.error());
  return index.description().cut.hex();
}

void DirectoryArchive::abandon(const std::string&, const std::string& name) {
  std::error_code ignored;
  fs::remove_all(root_ / name / ("draft-" + holder_), ignored);
  fs::remove(root_ / name, ignored);  // when nobody else has something there
}

Result<fs::path> DirectoryArchive::open(const std::string&, const std::string& name) {
  if (auto good = check_name(name); !good) return std::unexpected(good.error());
  std::error_code error;
  if (!fs::is_directory(root_ / name, error)) return fail(Errc::not_found, "there is no image {} in {}", name, root_.native());
  return root_ / name;
}

Result<std::shared_ptr<const image::PageChain>> open_chain(PageArchive& archive, const std::string& session,
                                                           const std::vector<std::string>& names, Pages pages) {
  std::vector<std::vector<image::PagePart>> images;
  for (const std::string& name : names) {
    YADO_ASSIGN(const fs::path directory, archive.open(session, name), "image " + name);
    std::vector<fs::path> parts;
    std::error_code error;
    for (auto at = fs::directory_iterator(directory, error); !error && at != fs::directory_iterator(); at.increment(error))
      if (fs::exists(at->path() / "pages.index", error) && !at->path().filename().native().starts_with("draft-"))
        parts.push_back(at->path());
    if (error) return failed(error, "look into", directory);
    std::ranges::sort(parts);
    images.emplace_back();
    for (const fs::path& part : parts) {
      const bool here = fs::exists(part / "pages.log", error);
      auto opened = image::PagePart::open(part, here ? image::PagePart::Log::here : image::PagePart::Log::elsewhere);
      if (!opened) return context(opened.error(), "image " + name);
      images.back().push_back(std::move(*opened));
    }
  }
  if (pages == Pages::all && !images.empty())
    for (const image::PagePart& part : images.front())
      if (!part.index().description().base_cut.none())
        return fail(Errc::conflict, "image {}: part {} is a delta, and its base is not there", names.front(), part.name());
  // Of one image the share that is here is enough; of a chain the indices of all must be.
  const auto coverage = images.size() == 1 || pages == Pages::chosen ? image::PageChain::Coverage::some : image::PageChain::Coverage::whole;
  YADO_ASSIGN(auto chain, image::PageChain::make(std::move(images), coverage), "images");
  return std::make_shared<const image::PageChain>(std::move(chain));
}

}  // namespace yado::pager
