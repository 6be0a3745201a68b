#include "image/fingerprint.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <memory>
#include <vector>

#include "image/checksum.hpp"
#include "image/pass.hpp"
#include "os/fd.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

std::uint64_t mtime_ns(const struct stat& s) {
  return static_cast<std::uint64_t>(s.st_mtim.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(s.st_mtim.tv_nsec);
}

Result<std::vector<std::string>> names_in(os::Fd directory, const std::string& path) {
  std::unique_ptr<DIR, CloseDir> stream(::fdopendir(directory.get()));
  if (!stream) return fail_errno(fmt::format("read {}", path));
  (void)directory.release();
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (!entry) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return fail_errno(fmt::format("read {}", path));
  std::ranges::sort(names);  // readdir's order is the file system's own
  return names;
}

/// Depth first, in the order of names. An explicit stack: how deep a tree goes is not ours to say.
class Walk {
 public:
  explicit Walk(Checksum& sum) : sum_(sum) {}

  Status run(const std::string& root) {
    YADO_TAKE(os::Fd top, os::open_path(root, O_RDONLY | O_DIRECTORY));
    struct stat s {};
    if (::fstat(top.get(), &s) != 0) return fail_errno(fmt::format("stat {}", root));
    device_ = s.st_dev;
    add(s);
    std::vector<std::string> pending{""};
    while (!pending.empty()) {
      const std::string relative = std::move(pending.back());
      pending.pop_back();
      YADO_PASS(directory(root, relative, pending));
    }
    return {};
  }

 private:
  Status directory(const std::string& root, const std::string& relative, std::vector<std::string>& pending) {
    const std::string path = root + relative;
    // The root itself may be reached through a link (tools/make-root's are); what is in it is not followed.
    const int follow = relative.empty() ? 0 : O_NOFOLLOW;
    auto opened = os::open_path(path, O_RDONLY | O_DIRECTORY | follow);
    if (!opened) {
      // It went away while we walked: the next fingerprint will differ, this one need not fail.
      if (opened.error().code == Errc::not_found && !relative.empty()) return {};
      return std::unexpected(std::move(opened.error()));
    }
    const int fd = opened->get();
    const os::Fd for_stat(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!for_stat.valid()) return fail_errno("dup");
    YADO_TAKE(const std::vector<std::string> names, names_in(std::move(*opened), path));
    sum_.add_field(relative);
    sum_.add_field(names.size());
    const std::size_t first = pending.size();
    for (const std::string& name : names) {
      struct stat s {};
      if (::fstatat(for_stat.get(), name.c_str(), &s, AT_SYMLINK_NOFOLLOW) != 0) {
        if (errno == ENOENT) continue;
        return fail_errno(fmt::format("stat {}/{}", path, name));
      }
      sum_.add_field(name);
      add(s);
      if (S_ISLNK(s.st_mode)) {
        char target[4096];
        const ssize_t length = ::readlinkat(for_stat.get(), name.c_str(), target, sizeof target);
        if (length >= 0) sum_.add_field(std::string_view(target, static_cast<std::size_t>(length)));
      }
      if (S_ISDIR(s.st_mode) && s.st_dev == device_) pending.push_back(relative + "/" + name);
    }
    std::reverse(pending.begin() + static_cast<std::ptrdiff_t>(first), pending.end());
    return {};
  }

  // A directory's own length and time are the file system's affair; its entries say what changed.
  void add(const struct stat& s) {
    sum_.add_field(s.st_mode);
    sum_.add_field(s.st_uid);
    sum_.add_field(s.st_gid);
    if (S_ISREG(s.st_mode)) {
      sum_.add_field(static_cast<std::uint64_t>(s.st_size));
      sum_.add_field(mtime_ns(s));
    } else if (S_ISCHR(s.st_mode) || S_ISBLK(s.st_mode)) {
      sum_.add_field(s.st_rdev);
    }
  }

  Checksum& sum_;
  dev_t device_ = 0;
};

void add_texts(Checksum& sum, const std::vector<std::string>& texts) {
  sum.add_field(texts.size());
  for (const std::string& text : texts) sum.add_field(text);
}

}  // namespace

Result<std::string> fingerprint(const std::filesystem::path& root) {
  struct stat s {};
  if (::stat(root.c_str(), &s) != 0) return fail_errno(fmt::format("root file system {}", root.native()));
  Checksum sum;
  if (S_ISREG(s.st_mode)) {
    sum.add_field("tar");
    sum.add_field(static_cast<std::uint64_t>(s.st_size));
    sum.add_field(mtime_ns(s));
    return sum.hex();
  }
  if (!S_ISDIR(s.st_mode))
    return fail(Errc::invalid_argument, "root file system {}: neither a directory nor a tar", root.native());
  sum.add_field("directory");
  YADO_TRY(Walk(sum).run(root.native()), "root file system");
  return sum.hex();
}

std::string spec_hash(const WorkloadSpec& spec, std::string_view root_fingerprint) {
  Checksum sum;
  sum.add_field("yado-spec-1");  // another recipe gets another number here
  sum.add_field(spec.name.str());
  sum.add_field(static_cast<std::uint64_t>(spec.kind));

  const ContainerSpec& container = spec.container;
  sum.add_field(container.root);
  add_texts(sum, container.command);
  sum.add_field(container.environment.size());
  for (const auto& [name, value] : container.environment) {
    sum.add_field(name);
    sum.add_field(value);
  }
  sum.add_field(container.working_directory);
  sum.add_field(container.uid);
  sum.add_field(container.gid);
  sum.add_field(container.mounts.size());
  for (const Mount& mount : container.mounts) {
    sum.add_field(mount.source);
    sum.add_field(mount.target);
    sum.add_field(mount.read_only ? 1U : 0U);
  }
  sum.add_field(container.memory_bytes);
  sum.add_field(std::bit_cast<std::uint64_t>(container.cpus));
  sum.add_field(container.pids);

  if (spec.kind == Kind::vm) {
    for (const std::string* text : {&spec.vm.kernel, &spec.vm.initramfs, &spec.vm.command_line}) sum.add_field(*text);
    add_texts(sum, spec.vm.disks);
    sum.add_field(spec.vm.memory_bytes);
    sum.add_field(spec.vm.vcpus);
  }

  sum.add_field(spec.service.port);
  sum.add_field(spec.service.ready.path);
  sum.add_field(static_cast<std::uint64_t>(spec.service.ready.status));
  sum.add_field(spec.service.ready.contains);
  sum.add_field(root_fingerprint);
  return sum.hex();
}

}  // namespace yado::image
