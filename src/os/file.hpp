#pragma once
// Small files: /proc, /sys, cgroups, pid files. Not for data whose size somebody else decides.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/fd.hpp"

namespace yado::os {

/// open(2) with O_CLOEXEC; the error names the path.
Result<Fd> open_path(const std::filesystem::path& path, int flags, unsigned mode = 0);
/// The whole file.
Result<std::string> read_text(const std::filesystem::path& path);
/// One write(2) into an existing file: what kernel files (cgroup, uid_map) want.
Status write_kernel_file(const std::filesystem::path& path, std::string_view text);
/// Writes beside and renames: readers see the old content or the new one. Not durable against a power loss.
Status replace_text(const std::filesystem::path& path, std::string_view text, unsigned mode = 0600);
/// What comes until nobody can write any more. Error `timed_out` when that is not within `limit`.
Result<std::string> read_to_end(const Fd& from, std::optional<nanoseconds> limit = {});
/// Writes all of it, through short writes and EINTR.
Status write_all(const Fd& fd, std::string_view text);
/// O_NONBLOCK on.
Status set_nonblocking(const Fd& fd);

struct Pipe {
  Fd read, write;
};
/// Both ends close-on-exec.
Result<Pipe> make_pipe();

}  // namespace yado::os
