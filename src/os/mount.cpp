#include "os/mount.hpp"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

// <sys/mount.h> and <linux/mount.h> define the same names in this libc; these two calls are all that is needed of it.
extern "C" int mount(const char*, const char*, const char*, unsigned long, const void*) noexcept;
extern "C" int umount2(const char*, int) noexcept;

namespace yado::os {
namespace {
constexpr int detach_lazily = 2;       // MNT_DETACH
constexpr unsigned long recursive = 16384, make_private = 1 << 18;  // MS_REC, MS_PRIVATE
}  // namespace

Mounted& Mounted::operator=(Mounted&& other) noexcept {
  if (this != &other) {
    if (!target_.empty()) ::umount2(target_.c_str(), detach_lazily);
    target_ = std::exchange(other.target_, {});
  }
  return *this;
}

Mounted::~Mounted() {
  if (!target_.empty()) ::umount2(target_.c_str(), detach_lazily);
}

Status enter_private_mounts() {
  if (::unshare(CLONE_NEWNS) != 0) return fail_errno("unshare the mount namespace");
  if (::mount("none", "/", nullptr, recursive | make_private, nullptr) != 0) return fail_errno("make mounts private");
  return {};
}

Result<Fd> copy_mount(const std::filesystem::path& path, bool with_those_below) {
  const unsigned below = with_those_below ? AT_RECURSIVE : 0;
  const int fd =
      static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, path.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | below));
  if (fd < 0) return fail_errno(fmt::format("open_tree {}", path.native()));
  return Fd(fd);
}

Status change_mount(const Fd& tree, const MountChange& change) {
  mount_attr attributes{};
  if (change.read_only) attributes.attr_set |= MOUNT_ATTR_RDONLY;
  if (change.no_devices) attributes.attr_set |= MOUNT_ATTR_NODEV;
  if (change.id_map >= 0) {
    attributes.attr_set |= MOUNT_ATTR_IDMAP;
    attributes.userns_fd = static_cast<unsigned>(change.id_map);
  }
  if (::syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH, &attributes, sizeof attributes) != 0)
    return fail_errno(change.id_map >= 0 ? "mount_setattr with an id map" : "mount_setattr");
  return {};
}

Result<Mounted> attach_mount(const Fd& tree, const std::filesystem::path& target) {
  if (::syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0)
    return fail_errno(fmt::format("move_mount to {}", target.native()));
  return Mounted(target);
}

Result<Mounted> bind_mount(const std::filesystem::path& source, const std::filesystem::path& target,
                           const MountChange& change) {
  YADO_ASSIGN(const Fd tree, copy_mount(source), "bind");
  YADO_TRY(change_mount(tree, change), fmt::format("bind {}", source.native()));
  return attach_mount(tree, target);
}

Result<Fd> make_tmpfs(std::uint64_t bytes) {
  const Fd context(static_cast<int>(::syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC)));
  if (!context.valid()) return fail_errno("fsopen tmpfs");
  const std::string size = fmt::format("{}", bytes);
  if (bytes != 0 && ::syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, "size", size.c_str(), 0) != 0)
    return fail_errno("size of a tmpfs");
  if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
    return fail_errno("create a tmpfs");
  const int fd = static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0));
  if (fd < 0) return fail_errno("fsmount tmpfs");
  return Fd(fd);
}

Result<Mounted> mount_overlay(const std::filesystem::path& lower, const std::filesystem::path& upper,
                              const std::filesystem::path& work, const std::filesystem::path& target) {
  const std::string options =
      fmt::format("lowerdir={},upperdir={},workdir={}", lower.native(), upper.native(), work.native());
  if (::mount("overlay", target.c_str(), "overlay", 0, options.c_str()) != 0)
    return fail_errno(fmt::format("mount overlay with {} on {}", options, target.native()));
  return Mounted(target);
}

}  // namespace yado::os
