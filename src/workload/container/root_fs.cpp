#include "workload/container/root_fs.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/log.hpp"
#include "os/file.hpp"
#include "os/user_namespace.hpp"
#include "workload/container/disk_archive.hpp"

namespace yado::container {
namespace {

namespace fs = std::filesystem;

Status fresh_directory(const fs::path& path, unsigned mode) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return fail(Errc::io, "clear {}: {}", path.native(), error.message());
  fs::create_directories(path.parent_path(), error);
  if (::mkdir(path.c_str(), static_cast<mode_t>(mode)) != 0 || ::chmod(path.c_str(), static_cast<mode_t>(mode)) != 0)
    return fail_errno(fmt::format("make directory {}", path.native()));
  return {};
}

/// The place a bind mount is attached to: of the same kind as its source.
Status make_target(const fs::path& source, const fs::path& target) {
  struct stat status {};
  if (::stat(source.c_str(), &status) != 0) return fail_errno(fmt::format("mount source {}", source.native()));
  if (S_ISDIR(status.st_mode)) return fresh_directory(target, 0755);
  std::error_code ignored;
  fs::create_directories(target.parent_path(), ignored);
  YADO_TRY(os::open_path(target, O_CREAT | O_WRONLY, 0644), "mount target");
  return {};
}

}  // namespace

Result<RootFs> RootFs::make(const fs::path& directory, const fs::path& lower, const std::vector<Mount>& mounts,
                            std::uint32_t id_base, const std::optional<fs::path>& disk) {
  std::error_code ignored;
  if (!fs::is_directory(lower, ignored))
    return fail(Errc::not_found, "the root file system {} {}", lower.native(),
                fs::exists(lower, ignored) ? "is not a directory" : "does not exist on this host");
  RootFs made;
  made.directory_ = directory;
  for (const char* part : {"lower", "rw", "rw-mapped", "root"}) YADO_TRY(fresh_directory(directory / part, 0755), "root file system");
  YADO_TRY(fresh_directory(made.upper(), 0755), "root file system");
  YADO_TRY(fresh_directory(directory / "rw" / "work", 0755), "root file system");
  if (disk) YADO_TRY(unpack_disk(*disk, made.upper()), "disk part");

  // The second extent gives the host's root an id on the disk: overlayfs does its own work as that, and without it
  // would silently be read-only.
  YADO_ASSIGN(const os::Fd layer_ids, os::make_id_map({{0, id_base, 65536}, {65536, 0, 1}}), "root file system");
  const os::MountChange layer{.id_map = layer_ids.get()};
  YADO_ASSIGN(made.lower_, os::bind_mount(lower, directory / "lower", layer), "root file system");
  YADO_ASSIGN(made.writable_, os::bind_mount(directory / "rw", directory / "rw-mapped", layer), "root file system");
  YADO_ASSIGN(made.overlay_,
              os::mount_overlay(directory / "lower", directory / "rw-mapped" / "upper",
                                directory / "rw-mapped" / "work", made.root()),
              "root file system");

  if (mounts.empty()) return made;
  YADO_ASSIGN(const os::Fd ids, os::make_id_map({{0, id_base, 65536}}), "mounts");
  for (std::size_t i = 0; i < mounts.size(); ++i) {
    const fs::path target = made.mount_source(i);
    YADO_TRY(make_target(mounts[i].source, target), "mounts");
    auto bound = os::bind_mount(mounts[i].source, target, {.id_map = ids.get(), .read_only = mounts[i].read_only});
    if (!bound) {
      // Network and FUSE file systems cannot be idmapped: files keep the ids they have outside.
      log::warn("{}: {}; mounted without an id map", mounts[i].source, bound.error().message);
      bound = os::bind_mount(mounts[i].source, target, {.read_only = mounts[i].read_only});
    }
    YADO_ASSIGN(os::Mounted mounted, std::move(bound), "mounts");
    made.binds_.push_back(std::move(mounted));
  }
  return made;
}

}  // namespace yado::container
