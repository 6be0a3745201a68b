#include "workload/vm/disk.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <linux/fs.h>
#include <map>
#include <memory>
#include <optional>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/file.hpp"
#include "os/process.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view qcow2_magic{"QFI\xfb", 4};
constexpr std::string_view layer_suffix = ".qcow2";
constexpr std::size_t page_bytes = 4096;
constexpr std::size_t chunk_bytes = 1 << 20;

bool all_zero(const char* data, std::size_t bytes) {
  return bytes == 0 || (data[0] == 0 && std::memcmp(data, data + 1, bytes - 1) == 0);
}

Status write_at(const os::Fd& to, const char* data, std::size_t bytes, off_t offset) {
  while (bytes > 0) {
    const ssize_t n = ::pwrite(to.get(), data, bytes, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("write");
    data += n;
    offset += n;
    bytes -= static_cast<std::size_t>(n);
  }
  return {};
}

/// The runs of pages that are not all zeros.
Status write_nonzero(const os::Fd& to, const char* data, std::size_t bytes, off_t offset) {
  for (std::size_t at = 0; at < bytes;) {
    const auto page = [&](std::size_t from) { return std::min(page_bytes, bytes - from); };
    std::size_t end = at;
    while (end < bytes && !all_zero(data + end, page(end))) end += page(end);
    YADO_TRY(write_at(to, data + at, end - at, offset + static_cast<off_t>(at)), "copy");
    at = end;
    while (at < bytes && all_zero(data + at, page(at))) at += page(at);
  }
  return {};
}

/// The number in "disk-0.7.qcow2", 0 for "disk-0.qcow2"; none for any other file.
std::optional<std::uint64_t> layer_number(std::string_view name, std::size_t disk) {
  const std::string prefix = fmt::format("disk-{}", disk);
  if (!name.starts_with(prefix) || !name.ends_with(layer_suffix) || name.size() < prefix.size() + layer_suffix.size()) return std::nullopt;
  name.remove_prefix(prefix.size());
  name.remove_suffix(layer_suffix.size());
  if (name.empty()) return 0;
  std::uint64_t number = 0;
  const auto parsed = std::from_chars(name.data() + 1, name.data() + name.size(), number);
  if (name[0] != '.' || parsed.ec != std::errc() || parsed.ptr != name.data() + name.size() || number == 0) return std::nullopt;
  return number;
}

std::map<std::uint64_t, fs::path> numbered_layers(const fs::path& directory, std::size_t disk) {
  std::map<std::uint64_t, fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored))
    if (const auto number = layer_number(entry.path().filename().native(), disk)) found.emplace(*number, entry.path());
  return found;
}

/// Runs a program of QEMU's that answers with its exit status and a few lines.
Status run_tool(std::vector<std::string> arguments, nanoseconds limit) {
  const std::string name = fmt::format("{} {}", arguments[0], arguments.size() > 1 ? arguments[1] : "");
  YADO_ASSIGN(os::Pipe pipe, os::make_pipe(), name);
  os::Spawn call{.arguments = std::move(arguments), .environment = {"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}};
  call.standard_error = pipe.write.get();
  YADO_ASSIGN(os::Process process, os::spawn(call), name);
  pipe.write.reset();
  YADO_ASSIGN(const std::optional<os::ExitStatus> ended, process.wait(limit), name);
  if (!ended) return fail(Errc::timed_out, "{}: not done within {} ms", name, to_ms(limit));
  if (ended->success()) return {};
  char said[2048];
  const ssize_t n = ::read(pipe.read.get(), said, sizeof said);
  std::string_view text(said, n > 0 ? static_cast<std::size_t>(n) : 0);
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  const Errc code = text.find("No space left") != std::string_view::npos ? Errc::no_space : Errc::io;
  return fail(code, "{}: {}: {}", name, ended->text(), text);
}

}  // namespace

std::string_view name_of(DiskFormat format) { return format == DiskFormat::qcow2 ? "qcow2" : "raw"; }

Result<DiskFormat> format_of(const fs::path& base) {
  YADO_ASSIGN(const os::Fd file, os::open_path(base, O_RDONLY), "disk image");
  std::array<char, qcow2_magic.size()> magic{};
  if (::pread(file.get(), magic.data(), magic.size(), 0) < 0) return fail_errno(fmt::format("read {}", base.native()));
  return std::string_view(magic.data(), magic.size()) == qcow2_magic ? DiskFormat::qcow2 : DiskFormat::raw;
}

std::vector<fs::path> layers_of(const fs::path& directory, std::size_t disk) {
  std::vector<fs::path> layers;
  for (auto& [number, path] : numbered_layers(directory, disk)) layers.push_back(path);
  return layers;
}

fs::path first_layer(const fs::path& directory, std::size_t disk) { return directory / fmt::format("disk-{}{}", disk, layer_suffix); }

fs::path next_layer(const fs::path& directory, std::size_t disk) {
  const auto there = numbered_layers(directory, disk);
  return there.empty() ? first_layer(directory, disk) : directory / fmt::format("disk-{}.{}{}", disk, there.rbegin()->first + 1, layer_suffix);
}

std::string node_of(const fs::path& layer) { return layer.stem().native(); }

Status make_overlay(const Qemu& qemu, const fs::path& base, const fs::path& overlay) {
  YADO_ASSIGN(const DiskFormat format, format_of(base), "overlay");
  std::error_code ignored;
  if (fs::exists(overlay, ignored)) return fail(Errc::already_exists, "overlay {} exists", overlay.native());
  Status made = run_tool({qemu.image_tool, "create", "-q", "-f", "qcow2", "-b", fs::absolute(base), "-F", std::string(name_of(format)), overlay}, qemu.limit);
  if (made) return {};
  fs::remove(overlay, ignored);
  const bool full = made.error().message.find("No space left") != std::string::npos;
  return full ? fail(Errc::no_space, "{}", made.error().message) : made;
}

Status copy_sparse(const os::Fd& from, const os::Fd& to) {
  struct stat status {};
  if (::fstat(from.get(), &status) != 0) return fail_errno("copy: stat");
  if (::ftruncate(to.get(), status.st_size) != 0) return fail_errno("copy: set the length");
  const auto buffer = std::make_unique_for_overwrite<char[]>(chunk_bytes);
  for (off_t at = 0; at < status.st_size;) {
    const off_t data = ::lseek(from.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return {};  // nothing but a hole is left
    if (data < 0) return fail_errno("copy: seek");
    const off_t end = ::lseek(from.get(), data, SEEK_HOLE);
    if (end < 0) return fail_errno("copy: seek");
    for (at = data; at < end;) {
      const ssize_t n = ::pread(from.get(), buffer.get(), std::min(chunk_bytes, static_cast<std::size_t>(end - at)), at);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return fail_errno("copy: read");
      if (n == 0) return fail(Errc::io, "copy: the file became shorter meanwhile");
      YADO_TRY(write_nonzero(to, buffer.get(), static_cast<std::size_t>(n), at), "copy");
      at += n;
    }
  }
  return {};
}

Status copy_disk(const fs::path& from, const fs::path& to) {
  const auto copy = [&]() -> Status {
    YADO_ASSIGN(const os::Fd source, os::open_path(from, O_RDONLY), "copy");
    YADO_ASSIGN(const os::Fd target, os::open_path(to, O_WRONLY | O_CREAT | O_EXCL, 0600), "copy");
    if (::ioctl(target.get(), FICLONE, source.get()) == 0) return {};
    Status copied = copy_sparse(source, target);
    if (!copied) ::unlink(to.c_str());
    return copied;
  };
  YADO_TRY(copy(), fmt::format("disk {} to {}", from.native(), to.native()));
  return {};
}

Status share_disk(const fs::path& from, const fs::path& to) {
  if (::link(from.c_str(), to.c_str()) == 0) return {};
  if (errno == EXDEV || errno == EMLINK || errno == EPERM || errno == EOPNOTSUPP) return copy_disk(from, to);
  return fail_errno(fmt::format("disk {} as {}", from.native(), to.native()));
}

bool is_shared(const fs::path& layer) {
  struct stat status {};
  return ::stat(layer.c_str(), &status) == 0 && status.st_nlink > 1;
}

Status replace_content(const fs::path& from, const fs::path& to) {
  YADO_ASSIGN(const os::Fd source, os::open_path(from, O_RDONLY), "copy");
  YADO_ASSIGN(const os::Fd target, os::open_path(to, O_WRONLY | O_TRUNC), "copy");
  if (::ioctl(target.get(), FICLONE, source.get()) == 0) return {};
  YADO_TRY(copy_sparse(source, target), fmt::format("disk {} to {}", from.native(), to.native()));
  return {};
}

}  // namespace yado::vm
