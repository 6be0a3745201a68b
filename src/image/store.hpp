#pragma once
// The image store of one host: a directory with one directory per image.
//
//   <root>/<image id>/manifest.json        written last: without it the directory is no image
//   <root>/<image id>/<part name>/<files>
//   <root>/.draft-<image id>-<random>/     being written; swept when the store is opened
//   <root>/.removed-<image id>-<random>/   being deleted; swept, too
//   <root>/.indices-<image id>/            of an image that lies elsewhere: its manifest and the indices of its pages
//   <root>/.use-<image id>                 of an image: in which order its pages were used after its cut (working_set.hpp)
//   <root>/.lock
//
// Owned by one agent (an flock says so). Not thread-safe for the same image; different images may be handled by
// different threads.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
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
  /// Makes a part of the same files as that in the directory `from`, by hard links; `commit` takes `part.files` for
  /// them without reading.
  Status link_part(const std::filesystem::path& from, const Part& part);

 private:
  friend class Store;
  enum class Place { must_be_free, is_taken_over };
  Draft(std::filesystem::path store, std::filesystem::path directory, ImageId id, Place place);
  Status publish(const Manifest& manifest);
  Status take_the_place();
  void discard() noexcept;
  std::filesystem::path store_, directory_;  ///< no directory: moved from or committed
  ImageId id_;
  Place place_;
  std::set<std::string> linked_;  ///< names of parts
};

/// What a store has of an image.
struct Held {
  Manifest manifest;
  std::filesystem::path directory;
  bool whole = true;  ///< else only the indices of its pages
};

class Store {
 public:
  /// Opens or makes the store (mode 0700); sweeps drafts. Error `conflict` when another live process holds it: the lock
  /// goes with the last copy of its descriptor, so a child that is forked and not exec'd keeps it.
  static Result<Store> open(std::filesystem::path root);

  /// The store of another process, to read it: no lock, no sweep. Images in it come and go at any moment.
  static Result<Store> look_into(std::filesystem::path root);

  /// `already_exists` when there is such an image.
  Result<Draft> begin(const ImageId& id) const;
  /// A draft that is to take the place of an image, at once and as a whole; until its commit, and after any error of
  /// it, there is the old one. Who has files of that open keeps them. `not_found` when there is none.
  Result<Draft> begin_replacement(const ImageId& id) const;
  Result<Manifest> read(const ImageId& id) const;
  /// Lengths and checksums of every file, of a log the checksum of every live record (docs/formats/image.md, "Being
  /// read"). Error `corrupt` names the first that differs. `on_verified` is called now and then with how many bytes
  /// more are fine; they add up to about Manifest::data_bytes().
  Status verify(const ImageId& id, const std::function<void(std::uint64_t bytes)>& on_verified = {}) const;
  /// Images with a readable manifest, oldest first. Directories without one are not images and are not listed.
  std::vector<Manifest> list() const;
  enum class Dependents { refuse, ignore };
  /// Renamed away first, so that a crash leaves no half image; kept indices of it go, too. Removing a missing one is a
  /// success. `conflict` names an image here that cannot be used without it: a delta of which it is the base, or a main
  /// image of which it is a member (image/chain.hpp has the right order).
  Status remove(const ImageId& id, Dependents dependents = Dependents::refuse) const;

  /// Keeps what says where the pages of an image of another host lie, so that chains can be resolved here. Replaces
  /// what was kept of it before. `indices`: part name -> bytes of pages.index, one for each part of type pages;
  /// `corrupt` when they are not those of the manifest.
  Status keep_indices(const Manifest& manifest, const std::map<std::string, std::string>& indices) const;
  /// Of which images there are such indices.
  std::vector<ImageId> kept() const;
  /// They go, whatever becomes of an image of that name.
  Status forget_indices(const ImageId& id) const;
  /// Where it lies, or would lie, in which order an image's pages were used after its cut: known only when the image is long there, and not of it.
  /// Whoever writes it replaces the whole file; it goes with the image.
  std::filesystem::path use_file(const ImageId& id) const;
  void forget_use(const ImageId& id) const;
  /// The image, or what is kept of it; the image when there are both. `not_found` when there is neither.
  Result<Held> find(const ImageId& id) const;
  /// The directory of a part; valid while the image exists.
  std::filesystem::path part_directory(const ImageId& id, std::string_view part) const;
  /// One file of an image for sending; refuses paths that leave the image.
  Result<os::Fd> open_file(const ImageId& id, std::string_view part, std::string_view path) const;
  const std::filesystem::path& root() const { return root_; }

 private:
  Store(std::filesystem::path root, os::Fd lock);
  Status remove_directory(const std::filesystem::path& directory, const ImageId& id) const;
  std::filesystem::path root_;
  os::Fd lock_;  ///< none: looked into
};

}  // namespace yado::image
