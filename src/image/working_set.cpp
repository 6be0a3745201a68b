#include "image/working_set.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "image/pass.hpp"
#include "image/sealed.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

constexpr std::string_view magic = "yadouse1";
constexpr std::string_view file_name = "working-set";

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
    return fail(Errc::invalid_argument, "{}: {}", file_name, readable.error().message);
  // Advice only, so it may be written in place: half of it is refused and done without.
  YADO_TAKE(const os::Fd file, os::open_path(part / file_name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600));
  Status written = os::write_all(file, bytes);
  if (written) return {};
  ::unlink((part / file_name).c_str());
  return context(written.error(), (part / file_name).native());
}

Result<WorkingSet> read_working_set(const std::filesystem::path& part) {
  YADO_TAKE(const std::string bytes, os::read_text(part / file_name));
  auto working_set = working_set_from_bytes(bytes);
  if (!working_set) return context(working_set.error(), (part / file_name).native());
  return working_set;
}

}  // namespace yado::image
