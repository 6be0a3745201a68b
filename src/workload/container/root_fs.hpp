#pragma once
// The file system of one instance: overlay and bind mounts, made in the caller's mount namespace.

#include <filesystem>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "model/workload.hpp"
#include "os/mount.hpp"

namespace yado::container {

class RootFs {
 public:
  /// `disk`: the directory of a `disk` part whose content becomes the upper layer; nothing: an empty one.
  static Result<RootFs> make(const std::filesystem::path& directory, const std::filesystem::path& lower,
                             const std::vector<Mount>& mounts, std::uint32_t id_base,
                             const std::optional<std::filesystem::path>& disk);

  /// "/" of the container.
  std::filesystem::path root() const { return directory_ / "root"; }
  /// The upper layer with the ids as seen inside: what a `disk` part is made of. (The overlay uses it through the
  /// idmapped rw-mapped.)
  std::filesystem::path upper() const { return directory_ / "rw" / "upper"; }
  std::filesystem::path mount_source(std::size_t index) const { return directory_ / "mounts" / std::to_string(index); }

 private:
  std::filesystem::path directory_;
  // Destroyed from the last to the first: the overlay before its layers.
  os::Mounted lower_, writable_, overlay_;
  std::vector<os::Mounted> binds_;
};

}  // namespace yado::container
