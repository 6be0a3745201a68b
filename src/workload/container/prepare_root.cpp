#include "workload/container/prepare_root.hpp"

#include <memory>

#include <fcntl.h>
#include <unistd.h>

#include <xxhash.h>

#include "os/file.hpp"
#include "workload/container/disk_archive.hpp"

namespace yado::container {
namespace {

namespace fs = std::filesystem;

Result<std::string> content_hash(const fs::path& file) {
  YADO_ASSIGN(const os::Fd fd, os::open_path(file, O_RDONLY), "root file system");
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  std::string buffer(1 << 20, '\0');
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0) return fail_errno("read " + file.native());
    if (n == 0) break;
    XXH3_128bits_update(state.get(), buffer.data(), static_cast<std::size_t>(n));
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace

Result<fs::path> prepare_root(const fs::path& given, const fs::path& cache) {
  std::error_code error;
  if (fs::is_directory(given, error)) return given;
  if (!fs::exists(given, error)) return fail(Errc::not_found, "the root file system {} does not exist on this host", given.native());
  YADO_ASSIGN(const std::string hash, content_hash(given), "root file system");
  fs::path ready = cache / hash;
  if (fs::is_directory(ready, error)) return ready;

  const fs::path draft = cache / fmt::format(".unpack-{}-{}", hash, ::getpid());
  fs::remove_all(draft, error);
  fs::create_directories(draft, error);
  if (error) return fail(Errc::io, "make {}: {}", draft.native(), error.message());
  Status unpacked = unpack_archive(given, draft);
  if (unpacked) {
    if (::rename(draft.c_str(), ready.c_str()) == 0) return ready;
    // Another agent was quicker: its directory has the same content.
    if (!fs::is_directory(ready, error)) unpacked = fail_errno("rename to " + ready.native());
  }
  fs::remove_all(draft, error);
  YADO_TRY(unpacked, "root file system");
  return ready;
}

}  // namespace yado::container
