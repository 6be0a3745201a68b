#include "os/file.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

#include "os/clock.hpp"
#include "os/pidfd.hpp"

namespace yado::os {

Result<Fd> open_path(const std::filesystem::path& path, int flags, unsigned mode) {
  for (;;) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, static_cast<mode_t>(mode));
    if (fd >= 0) return Fd(fd);
    if (errno != EINTR) return fail_errno(fmt::format("open {}", path.native()));
  }
}

Result<std::string> read_text(const std::filesystem::path& path) {
  YADO_ASSIGN(const Fd fd, open_path(path, O_RDONLY), "read");
  YADO_ASSIGN(std::string text, read_to_end(fd), path.native());
  return text;
}

Result<std::string> read_to_end(const Fd& from, std::optional<nanoseconds> limit) {
  const Instant begun = now();
  std::string text;
  char buffer[4096];
  for (;;) {
    if (limit) {
      YADO_ASSIGN(const bool ready, readable_within(from.get(), std::max(*limit - (now() - begun), nanoseconds(0))), "read");
      if (!ready) return fail(Errc::timed_out, "it is not done after {:.0f} ms", to_ms(*limit));
    }
    const ssize_t n = ::read(from.get(), buffer, sizeof buffer);
    if (n == 0) return text;
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
    else if (errno != EINTR) return fail_errno("read");
  }
}

Status write_all(const Fd& fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd.get(), text.data(), text.size());
    if (n >= 0) text.remove_prefix(static_cast<std::size_t>(n));
    else if (errno != EINTR) return fail_errno("write");
  }
  return {};
}

Status write_kernel_file(const std::filesystem::path& path, std::string_view text) {
  YADO_ASSIGN(const Fd fd, open_path(path, O_WRONLY), "write");
  for (;;) {
    const ssize_t n = ::write(fd.get(), text.data(), text.size());
    if (n == static_cast<ssize_t>(text.size())) return {};
    if (n >= 0) return fail(Errc::io, "write \"{}\" to {}: only {} bytes were taken", text, path.native(), n);
    if (errno != EINTR) return fail_errno(fmt::format("write \"{}\" to {}", text, path.native()));
  }
}

Status replace_text(const std::filesystem::path& path, std::string_view text, unsigned mode) {
  const std::filesystem::path beside = path.native() + fmt::format(".new-{}", ::getpid());
  const auto write = [&]() -> Status {
    YADO_ASSIGN(const Fd fd, open_path(beside, O_WRONLY | O_CREAT | O_TRUNC, mode), "write");
    YADO_TRY(write_all(fd, text), beside.native());
    if (::rename(beside.c_str(), path.c_str()) != 0) return fail_errno(fmt::format("rename to {}", path.native()));
    return {};
  };
  Status written = write();
  if (!written) ::unlink(beside.c_str());
  return written;
}

Status set_nonblocking(const Fd& fd) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) return fail_errno("fcntl O_NONBLOCK");
  return {};
}

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno("pipe2");
  return Pipe{Fd(ends[0]), Fd(ends[1])};
}

}  // namespace yado::os
