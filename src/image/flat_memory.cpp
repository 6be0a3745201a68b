#include "image/flat_memory.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/units.hpp"
#include "image/extents.hpp"
#include "image/file_io.hpp"
#include "image/pass.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

constexpr std::size_t piece_bytes = 1_MiB;

// Pages that follow each other go out together.
class FlatWriter {
 public:
  explicit FlatWriter(const os::Fd& file) : file_(file) {}
  Status put(PageNumber page, PageContents contents) {
    const std::uint64_t offset = value_of(page) * page_bytes;
    if (used_ == piece_bytes || offset != offset_ + used_) YADO_PASS(flush());
    if (used_ == 0) offset_ = offset;
    std::memcpy(buffer_.get() + used_, contents.data(), page_bytes);
    used_ += page_bytes;
    return {};
  }
  Status flush() { return write_at(file_, std::span(buffer_.get(), std::exchange(used_, 0)), offset_); }

 private:
  const os::Fd& file_;
  std::unique_ptr<std::byte[]> buffer_ = std::make_unique_for_overwrite<std::byte[]>(piece_bytes);
  std::uint64_t offset_ = 0;
  std::size_t used_ = 0;
};

Status export_to(const PageChain& chain, const os::Fd& file, const std::function<void()>& on_page) {
  if (::ftruncate(file.get(), static_cast<off_t>(chain.guest_pages() * page_bytes)) != 0) return fail_errno("truncate");
  FlatWriter writer(file);
  for (const PagePart* part : chain.parts())
    YADO_PASS(part->scan(chain.live(*part), [&](PageNumber page, std::optional<PageContents> contents) {
      if (on_page) on_page();
      return contents ? writer.put(page, *contents) : Status();
    }));
  YADO_PASS(writer.flush());
  if (::fsync(file.get()) != 0) return fail_errno("fsync");
  return {};
}

Status import_data(const os::Fd& file, std::uint64_t from, std::uint64_t to, PageAppender& appender) {
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(piece_bytes);
  while (from < to) {
    const std::size_t wanted = std::min<std::uint64_t>(piece_bytes, to - from);
    YADO_TAKE(const std::size_t got, read_at(file, std::span(buffer.get(), wanted), from));
    if (got != wanted) return fail(Errc::conflict, "it became shorter while it was read");
    for (std::size_t at = 0; at < wanted; at += page_bytes)
      YADO_PASS(
          appender.put(PageNumber{(from + at) / page_bytes}, PageContents(buffer.get() + at, page_bytes), Round{0}));
    from += wanted;
  }
  return {};
}

Status import_from(const os::Fd& file, std::uint64_t bytes, PageAppender& appender) {
  for (std::uint64_t at = 0; at < bytes;) {
    YADO_TAKE(const Extent data, next_data(file, at, bytes));
    const std::uint64_t from = data.first / page_bytes * page_bytes;
    for (; at < from; at += page_bytes) YADO_PASS(appender.put_zeros(PageNumber{at / page_bytes}, Round{0}));
    const std::uint64_t to = (data.end + page_bytes - 1) / page_bytes * page_bytes;
    YADO_PASS(import_data(file, at, to, appender));
    at = to;
  }
  return appender.flush();
}

}  // namespace

Status export_flat(const PageChain& chain, const std::filesystem::path& file, const std::function<void()>& on_page) {
  constexpr int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
  YADO_ASSIGN(const os::Fd fd, os::open_path(file, flags, 0600), "export of memory");
  Status exported = export_to(chain, fd, on_page);
  if (exported) return {};
  ::unlink(file.c_str());
  return context(exported.error(), fmt::format("export of memory to {}", file.native()));
}

Result<FlatPiece> flat_piece(const PageChain& chain, PageNumber from, std::size_t most) {
  FlatPiece piece{.next = from};
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(page_bytes);
  const PageBuffer page(buffer.get(), page_bytes);
  for (; value_of(piece.next) < chain.guest_pages() && piece.pages.size() < most; piece.next = PageNumber{value_of(piece.next) + 1}) {
    const PageChain::Place place = chain.find(piece.next);
    if (place.page.record.zero()) continue;
    YADO_TRY(place.part->read(place.page, page), "piece of memory");
    piece.pages.push_back(piece.next);
    piece.contents.append(reinterpret_cast<const char*>(page.data()), page_bytes);
  }
  return piece;
}

Result<PageIndex> import_flat(const std::filesystem::path& file, const std::filesystem::path& part, const CutId& cut,
                              Caching caching) {
  YADO_ASSIGN(const os::Fd fd, os::open_path(file, O_RDONLY), "import of memory");
  const std::string doing = fmt::format("import of memory from {}", file.native());
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(doing);
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || bytes == 0 || bytes % page_bytes != 0)
    return fail(Errc::invalid_argument, "{}: {} bytes are no number of pages of 4096 bytes", doing, bytes);
  const std::uint64_t guest_pages = bytes / page_bytes;
  YADO_ASSIGN(PageWriter writer, PageWriter::create(part, {.guest_pages = guest_pages, .cut = cut, .caching = caching}),
              doing);
  PageAppender appender = writer.appender();
  YADO_TRY(import_from(fd, bytes, appender), doing);
  return writer.finish(all_pages(guest_pages));
}

}  // namespace yado::image
