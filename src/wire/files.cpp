#include "wire/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "os/file.hpp"

namespace yado::wire {
namespace {

Status sync_directory(const std::filesystem::path& directory) {
  YADO_ASSIGN(const os::Fd fd, os::open_path(directory, O_RDONLY | O_DIRECTORY), "sync");
  if (::fsync(fd.get()) != 0) return fail_errno(fmt::format("sync {}", directory.string()));
  return {};
}

}  // namespace

Result<std::string> read_file(const std::filesystem::path& path, bool secret) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return fail_errno(fmt::format("open {}", path.string()));
  if (secret && (found.st_mode & 077) != 0)
    return fail(Errc::permission, "{} holds a private key and others than its owner may read it: chmod 600 it",
                path.string());
  return os::read_text(path);
}

Status write_file(const std::filesystem::path& path, std::string_view contents, unsigned mode) {
  const std::string temporary = path.string() + ".new";
  // One left behind by a crash may have another mode; O_EXCL makes sure that ours is the one that was asked for.
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT) return fail_errno(fmt::format("remove {}", temporary));
  YADO_ASSIGN(const os::Fd fd, os::open_path(temporary, O_WRONLY | O_CREAT | O_EXCL, mode), "create");
  YADO_TRY(os::write_all(fd, contents), temporary);
  if (::fchmod(fd.get(), mode) != 0 || ::fsync(fd.get()) != 0) return fail_errno(fmt::format("finish {}", temporary));
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return fail_errno(fmt::format("rename to {}", path.string()));
  return sync_directory(path.parent_path().empty() ? std::filesystem::path(".") : path.parent_path());
}

Status make_private_directory(const std::filesystem::path& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno(fmt::format("make directory {}", directory.string()));
  return {};
}

}  // namespace yado::wire
