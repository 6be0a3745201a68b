#include "workload/vm/pages_memory.hpp"

#include <cerrno>
#include <unistd.h>

#include <random>
#include <vector>

#include "image/page_part.hpp"
#include "image/page_writer.hpp"

namespace yado::vm {
namespace {

constexpr std::size_t piece_bytes = 1 << 20;

/// The next stretch of the file that holds data, at or after `from`; [bytes, bytes) at the end.
Result<std::pair<std::uint64_t, std::uint64_t>> next_data(const os::Fd& memory, std::uint64_t from, std::uint64_t bytes) {
  const off_t begin = ::lseek(memory.get(), static_cast<off_t>(from), SEEK_DATA);
  if (begin < 0 && errno == ENXIO) return std::pair(bytes, bytes);
  if (begin < 0) return fail_errno("look for data in the guest's memory");
  const off_t end = ::lseek(memory.get(), begin, SEEK_HOLE);
  if (end < 0) return fail_errno("look for a hole in the guest's memory");
  return std::pair(static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end));
}

Status save_stretch(const os::Fd& memory, std::uint64_t begin, std::uint64_t end, image::PageAppender& into) {
  std::vector<std::byte> piece(piece_bytes);
  for (std::uint64_t at = begin; at < end;) {
    const std::size_t wanted = std::min<std::uint64_t>(piece.size(), end - at);
    const ssize_t n = ::pread(memory.get(), piece.data(), wanted, static_cast<off_t>(at));
    if (n != static_cast<ssize_t>(wanted)) return fail_errno("read the guest's memory");
    for (std::size_t offset = 0; offset < wanted; offset += image::page_bytes)
      YADO_TRY(into.put(image::PageNumber{(at + offset) / image::page_bytes},
                        image::PageContents(piece.data() + offset, image::page_bytes), image::Round{}), "memory");
    at += wanted;
  }
  return {};
}

Status save_holes(std::uint64_t begin, std::uint64_t end, image::PageAppender& into) {
  for (std::uint64_t at = begin; at < end; at += image::page_bytes)
    YADO_TRY(into.put_zeros(image::PageNumber{at / image::page_bytes}, image::Round{}), "memory");
  return {};
}

image::CutId fresh_cut() {
  std::random_device random;
  return image::CutId::of(fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random()));
}

}  // namespace

Status PagesMemory::save(const os::Fd& memory, std::uint64_t bytes) {
  const std::uint64_t pages = bytes / image::page_bytes;
  YADO_ASSIGN(image::PageWriter writer, image::PageWriter::create(part_, {.guest_pages = pages, .cut = fresh_cut()}), "memory");
  {
    image::PageAppender appender = writer.appender();
    for (std::uint64_t at = 0; at < bytes;) {
      YADO_ASSIGN(const auto data, next_data(memory, at, bytes), "memory");
      YADO_TRY(save_holes(at, data.first, appender), "memory");
      YADO_TRY(save_stretch(memory, data.first, data.second, appender), "memory");
      at = data.second;
    }
    YADO_TRY(appender.flush(), "memory");
  }
  YADO_TRY(writer.finish(image::all_pages(pages)), "memory");
  return {};
}

Status PagesMemory::load(const os::Fd& memory, std::uint64_t bytes) {
  YADO_ASSIGN(const image::PagePart part, image::PagePart::open(part_), "memory");
  if (part.index().description().guest_pages != bytes / image::page_bytes)
    return fail(Errc::corrupt, "memory: {} holds a guest of {} pages; this one has {}", part_.native(),
                part.index().description().guest_pages, bytes / image::page_bytes);
  const auto write = [&](image::PageNumber page, std::optional<image::PageContents> contents) -> Status {
    if (!contents) return {};  // a hole already
    const off_t at = static_cast<off_t>(image::value_of(page) * image::page_bytes);
    if (::pwrite(memory.get(), contents->data(), contents->size(), at) != static_cast<ssize_t>(contents->size()))
      return fail_errno("fill the guest's memory");
    return {};
  };
  return part.scan(part.in_file_order(), write);
}

}  // namespace yado::vm
