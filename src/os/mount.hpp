#pragma once
// Mounts as values, by the descriptor-based calls (open_tree(2), mount_setattr(2), move_mount(2)).

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::os {

/// A mount point that is unmounted (lazily) at destruction.
class Mounted {
 public:
  Mounted() = default;
  explicit Mounted(std::filesystem::path target) : target_(std::move(target)) {}
  Mounted(Mounted&& other) noexcept : target_(std::exchange(other.target_, {})) {}
  Mounted& operator=(Mounted&& other) noexcept;
  ~Mounted();
  const std::filesystem::path& path() const { return target_; }

 private:
  std::filesystem::path target_;
};

/// A mount namespace of this process's own, from which nothing gets out.
Status enter_private_mounts();

/// A detached copy of what is at `path`, without the mounts below it unless they are wanted.
Result<Fd> copy_mount(const std::filesystem::path& path, bool with_those_below = false);
struct MountChange {
  int id_map = -1;  ///< a user namespace (make_id_map); -1: ids as they are
  bool read_only = false;
  bool no_devices = true;
};
/// Only on a detached mount that was never attached.
Status change_mount(const Fd& tree, const MountChange& change);
Result<Mounted> attach_mount(const Fd& tree, const std::filesystem::path& target);
/// The three in one.
Result<Mounted> bind_mount(const std::filesystem::path& source, const std::filesystem::path& target,
                           const MountChange& change);

/// A detached tmpfs; `bytes` 0: the kernel's default bound, half of the memory.
Result<Fd> make_tmpfs(std::uint64_t bytes = 0);
/// overlayfs(5); `work` must be on the file system of `upper`.
Result<Mounted> mount_overlay(const std::filesystem::path& lower, const std::filesystem::path& upper,
                              const std::filesystem::path& work, const std::filesystem::path& target);

}  // namespace yado::os
