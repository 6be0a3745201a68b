#include "image/working_set.hpp"

#include <algorithm>

#include "image/page_files.hpp"
#include "image/pass.hpp"
#include "image/sealed.hpp"

namespace yado::image {
namespace {

constexpr std::string_view magic = "yadouse1";

struct Header {
  std::array<char, 8> magic;
  std::uint64_t guest_pages;
  std::uint64_t count;
};
static_assert(sizeof(Header) == 24);

}  // namespace

std::string to_bytes(const WorkingSet& working_set) {
  Header header{.guest_pages = working_set.guest_pages, .count = working_set.pages.size()};
  std::ranges::copy(magic, header.magic.begin());
  std::string bytes;
  append(bytes, header);
  append(bytes, std::span<const PageNumber>(working_set.pages));
  append_seal(bytes);
  return bytes;
}

Result<WorkingSet> working_set_from_bytes(std::string_view bytes) {
  if (bytes.size() < sizeof(Header) + sizeof(Seal)) return fail(Errc::corrupt, "{} bytes: too short", bytes.size());
  Reader reader(bytes);
  const Header header = reader.take<Header>();
  if (std::string_view(header.magic.data(), header.magic.size()) != magic)
    return fail(Errc::corrupt, "no working set of version 1");
  if (header.count > bytes.size() || bytes.size() != sizeof(Header) + 8 * header.count + sizeof(Seal))
    return fail(Errc::corrupt, "{} bytes do not hold {} pages", bytes.size(), header.count);
  if (!sealed(bytes)) return fail(Errc::corrupt, "checksum differs");
  if (header.guest_pages > max_guest_pages || header.count > header.guest_pages)
    return fail(Errc::corrupt, "{} pages of a guest of {}", header.count, header.guest_pages);
  WorkingSet working_set{header.guest_pages, std::vector<PageNumber>(header.count)};
  reader.take(std::span(working_set.pages));
  for (const PageNumber page : working_set.pages)
    if (value_of(page) >= header.guest_pages)
      return fail(Errc::corrupt, "page {} of a guest of {}", page, header.guest_pages);
  return working_set;
}

Status write_working_set(const std::filesystem::path& part, const WorkingSet& working_set) {
  const std::string bytes = to_bytes(working_set);
  if (auto readable = working_set_from_bytes(bytes); !readable)
    return fail(Errc::invalid_argument, "{}: {}", working_set_file, readable.error().message);
  return write_new_file(part / working_set_file, bytes);
}

Result<WorkingSet> read_working_set(const std::filesystem::path& part) {
  YADO_TAKE(const std::string bytes, read_whole(part / working_set_file));
  auto working_set = working_set_from_bytes(bytes);
  if (!working_set) return context(working_set.error(), (part / working_set_file).native());
  return working_set;
}

}  // namespace yado::image
