#include "image/page_part.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <new>

#include "image/file_io.hpp"
#include "image/page_files.hpp"
#include "image/page_log.hpp"
#include "image/pass.hpp"
#include "image/sealed.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

Result<PageIndex> read_index(const std::filesystem::path& path) {
  auto bytes = read_whole(path);
  if (!bytes && bytes.error().code == Errc::not_found)
    return fail(Errc::corrupt, "{} is missing: the part was not finished", index_file);
  if (!bytes) return std::unexpected(bytes.error());
  auto index = PageIndex::from_bytes(*bytes);
  if (!index) return context(index.error(), index_file);
  return index;
}

// Reading over less than this costs less than asking once more.
constexpr Slot longest_gap = 16;

struct FreeAligned {
  void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t(page_bytes)); }
};

/// True while `path` leads to the directory that is open: nobody else can have its inode.
bool is_still(const os::Fd& directory, const std::filesystem::path& path) {
  struct stat opened {}, now {};
  return ::fstat(directory.get(), &opened) == 0 && ::stat(path.c_str(), &now) == 0 && opened.st_dev == now.st_dev && opened.st_ino == now.st_ino;
}

Result<os::Fd> open_log(const std::filesystem::path& path, const PageIndex& index) {
  YADO_TAKE(os::Fd log, os::open_path(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  struct stat status {};
  if (::fstat(log.get(), &status) != 0) return fail_errno(fmt::format("stat {}", path.native()));
  const std::uint64_t bytes = index.log_slots() * page_bytes;
  if (!S_ISREG(status.st_mode) || static_cast<std::uint64_t>(status.st_size) != bytes)
    return fail(Errc::corrupt, "{}: {} bytes instead of {}", log_file, status.st_size, bytes);
  return log;
}

}  // namespace

PagePart::PagePart(std::string name, PageIndex index, os::Fd log, os::Fd bulk)
    : name_(std::move(name)), index_(std::move(index)), log_(std::move(log)), bulk_(std::move(bulk)) {}

Result<PagePart> PagePart::open(const std::filesystem::path& directory, Log log, std::string name) {
  if (name.empty()) name = directory.filename().native();
  for (;;) {
    const auto held = os::open_path(directory, O_PATH | O_DIRECTORY);
    auto opened = open_once(directory, log, name);
    if (!held || is_still(*held, directory)) return opened;
  }
}

Result<PagePart> PagePart::open_once(const std::filesystem::path& directory, Log log, std::string name) {
  const std::string doing = fmt::format("part {}", name);
  YADO_ASSIGN(PageIndex index, read_index(directory / index_file), doing);
  if (log == Log::elsewhere) return PagePart(std::move(name), std::move(index), os::Fd(), os::Fd());
  YADO_ASSIGN(os::Fd file, open_log(directory / log_file, index), doing);
  YADO_ASSIGN(os::Fd bulk, open_log(directory / log_file, index), doing);
  (void)::fcntl(bulk.get(), F_SETFL, O_DIRECT);  // a file system that knows no such thing reads through its cache
  return PagePart(std::move(name), std::move(index), std::move(file), std::move(bulk));
}

std::unexpected<Error> PagePart::wrong(Errc code, const PlacedPage& page, std::string_view what) const {
  return fail(code, "part {}: page {} ({} offset {}): {}", name_, page.page, log_file, page.record.log_offset(), what);
}

Status PagePart::read_log(const os::Fd& log, std::span<std::byte> bytes, const PlacedPage& first) const {
  if (!log.valid()) return wrong(Errc::unavailable, first, "the log is on another host");
  auto got = read_at(log, bytes, first.record.log_offset());
  if (!got) return wrong(got.error().code, first, got.error().message);
  if (*got != bytes.size()) return wrong(Errc::corrupt, first, "the log became shorter");
  return {};
}

Status PagePart::compare(const PlacedPage& page, PageContents contents) const {
  if (checksum_of(contents) == page.record.checksum) return {};
  // Rot changes no time. Who verifies files that have changed since (agent/images.hpp) shall look at this one.
  if (log_.valid()) (void)::futimens(log_.get(), nullptr);
  return wrong(Errc::corrupt, page, "checksum differs");
}

Status PagePart::read(PageNumber page, PageBuffer contents) const {
  const auto record = index_.find(page);
  if (!record) return fail(Errc::not_found, "part {}: has no record of page {}", name_, page);
  return read({page, *record}, contents);
}

Status PagePart::read(const PlacedPage& page, PageBuffer contents) const {
  if (page.record.zero()) {
    std::ranges::fill(contents, std::byte{});
    return {};
  }
  YADO_PASS(read_log(log_, contents, page));
  return compare(page, contents);
}

std::vector<PlacedPage> PagePart::in_file_order() const {
  std::vector<PlacedPage> pages;
  pages.reserve(index_.records());
  for (const PageIndex::Run& run : index_.runs())
    for (std::uint64_t i = 0; i < run.pages.count; ++i)
      pages.push_back({PageNumber{run.pages.begin() + i}, index_.at(run.position + i)});
  sort_in_file_order(pages);
  return pages;
}

void sort_in_file_order(std::vector<PlacedPage>& pages) {
  const auto key = [](const PlacedPage& page) { return std::pair(page.record.slot, value_of(page.page)); };
  if (!std::ranges::is_sorted(pages, {}, key)) std::ranges::sort(pages, {}, key);
}

Status PagePart::scan(std::span<const PlacedPage> pages, const PageVisitor& visit, const LogReader& log) const {
  const std::unique_ptr<std::byte[], FreeAligned> buffer(
      static_cast<std::byte*>(::operator new[](extent_slots* page_bytes, std::align_val_t(page_bytes))));
  while (!pages.empty() && !pages.front().record.zero()) {
    const Slot first = pages.front().record.slot;
    std::size_t count = 1;
    while (count < pages.size() && !pages[count].record.zero() &&
           pages[count].record.slot - pages[count - 1].record.slot <= longest_gap &&
           pages[count].record.slot - first < extent_slots)
      ++count;
    const std::size_t slots = pages[count - 1].record.slot - first + 1;
    const std::span<std::byte> piece(buffer.get(), slots * page_bytes);
    YADO_PASS(log ? log(*this, pages.front().record.log_offset(), piece) : read_log(bulk_, piece, pages.front()));
    for (const PlacedPage& page : pages.first(count)) {
      const PageContents contents(buffer.get() + (page.record.slot - first) * page_bytes, page_bytes);
      YADO_PASS(compare(page, contents));
      YADO_PASS(visit(page.page, contents));
    }
    pages = pages.subspan(count);
  }
  for (const PlacedPage& page : pages) YADO_PASS(visit(page.page, std::nullopt));
  return {};
}

Status PagePart::verify() const {
  return scan(in_file_order(), [](PageNumber, std::optional<PageContents>) { return Status(); });
}

}  // namespace yado::image
