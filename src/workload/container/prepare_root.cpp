#include "workload/container/prepare_root.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "workload/container/disk_archive.hpp"

namespace yado::container {
namespace {

namespace fs = std::filesystem;

/// Which file, as it stands. Not its content: reading some hundred megabytes would be part of every raise.
Result<std::string> identity_of(const fs::path& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) return fail_errno("look at the root file system " + file.native());
  const std::string text = fmt::format("{} {} {} {}.{:09}", status.st_dev, status.st_ino, status.st_size,
                                       status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace

Result<fs::path> prepare_root(const fs::path& given, const fs::path& cache) {
  std::error_code error;
  if (fs::is_directory(given, error)) return given;
  if (!fs::exists(given, error)) return fail(Errc::not_found, "the root file system {} does not exist on this host", given.native());
  YADO_ASSIGN(const std::string hash, identity_of(given), "root file system");
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
