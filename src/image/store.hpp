#pragma once
// The image store of one host: a directory with one directory per image.
//
//   <root>/<image id>/manifest.json        written last: without it the directory is no image
//   <root>/<image id>/<part name>/<files>
//   <root>/.draft-<image id>-<random>/     being written; swept when the store is opened
//   <root>/.removed-<image id>-<random>/   being deleted; swept, too
//   <root>/.lock
//
// Owned by one agent (an flock says so). Not thread-safe for the same image; different images may be handled by
// different threads.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "image/manifest.hpp"
#include "os/fd.hpp"

namespace yado::image {

/// An image being written. Destruction without `commit` removes it.
class Draft {
 public:
  Draft(Draft&&) noexcept;
  Draft& operator=(Draft&&) noexcept;
  ~Draft();

  /// Makes (if needed) and returns the directory of a part.
  Result<std::filesystem::path> part_directory(std::string_view name) const;
  const std::filesystem::path& directory() const { return directory_; }

  /// Fills in `bytes` and `xxh128` of every file found in the parts named in `manifest.parts` (their `files` are
  /// ignored), fsyncs files and directories, writes the manifest and renames: the only moment at which an image comes
  /// into being. `already_exists` when there is one; after any error there is none, and the draft goes with its object.
  Result<Manifest> commit(Manifest manifest);
  /// The same for a copy: the files must match the `manifest` given, to the checksum.
  Status commit_copy(const Manifest& manifest);

 private:
  friend class Store;
  Draft(std::filesystem::path store, std::filesystem::path directory, ImageId id);
  Status publish(const Manifest& manifest);
  void discard() noexcept;
  std::filesystem::path store_, directory_;  ///< no directory: moved from or committed
  ImageId id_;
};

class Store {
 public:
  /// Opens or makes the store (mode 0700); sweeps drafts. Error `conflict` when another live process holds it: the lock
  /// goes with the last copy of its descriptor, so a child that is forked and not exec'd keeps it.
  static Result<Store> open(std::filesystem::path root);

  /// `already_exists` when there is such an image.
  Result<Draft> begin(const ImageId& id) const;
  Result<Manifest> read(const ImageId& id) const;
  /// Lengths and checksums of every file. Error `corrupt` names the first file that differs.
  Status verify(const ImageId& id) const;
  /// Images with a readable manifest, oldest first. Directories without one are not images and are not listed.
  std::vector<Manifest> list() const;
  /// Renamed away first, so that a crash leaves no half image. Removing a missing one is a success.
  Status remove(const ImageId& id) const;
  /// The directory of a part; valid while the image exists.
  std::filesystem::path part_directory(const ImageId& id, std::string_view part) const;
  /// One file of an image for sending; refuses paths that leave the image.
  Result<os::Fd> open_file(const ImageId& id, std::string_view part, std::string_view path) const;
  const std::filesystem::path& root() const { return root_; }

 private:
  Store(std::filesystem::path root, os::Fd lock);
  std::filesystem::path root_;
  os::Fd lock_;
};

}  // namespace yado::image
