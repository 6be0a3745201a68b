#include "image/sealed.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "image/file_io.hpp"
#include "image/pass.hpp"
#include "os/file.hpp"

namespace yado::image {

Seal seal_of(std::string_view bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Seal seal;
  std::memcpy(seal.data(), canonical.digest, seal.size());
  return seal;
}

bool sealed(std::string_view bytes) {
  constexpr std::size_t seal_bytes = sizeof(Seal);
  if (bytes.size() < seal_bytes) return false;
  const Seal seal = seal_of(bytes.substr(0, bytes.size() - seal_bytes));
  return std::memcmp(seal.data(), bytes.data() + bytes.size() - seal_bytes, seal_bytes) == 0;
}

Result<std::string> read_whole(const std::filesystem::path& path) {
  YADO_TAKE(const os::Fd file, os::open_path(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return fail_errno(fmt::format("stat {}", path.native()));
  if (!S_ISREG(status.st_mode)) return fail(Errc::corrupt, "{}: no regular file", path.native());
  std::string bytes(static_cast<std::size_t>(status.st_size), '\0');
  YADO_ASSIGN(const std::size_t got, read_at(file, std::as_writable_bytes(std::span(bytes)), 0), path.native());
  if (got != bytes.size()) return fail(Errc::corrupt, "{}: it became shorter while it was read", path.native());
  return bytes;
}

Status write_new_file(const std::filesystem::path& path, std::string_view bytes) {
  YADO_TAKE(const os::Fd file, os::open_path(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
  Status written = os::write_all(file, bytes);
  if (written && ::fsync(file.get()) != 0) written = fail_errno("fsync");
  if (written) return {};
  ::unlink(path.c_str());
  return context(written.error(), path.native());
}

}  // namespace yado::image
