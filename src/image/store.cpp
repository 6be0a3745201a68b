#include "image/store.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.hpp"
#include "image/checksum.hpp"
#include "image/disk.hpp"
#include "image/page_files.hpp"
#include "image/pass.hpp"
#include "image/paths.hpp"
#include "image/sealed.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;

Status check_id(const ImageId& id) {
  if (!valid_name(id.str())) return fail(Errc::invalid_argument, "\"{}\" is not the name of an image", id);
  return {};
}

// Drafts of a process that died, deletions it did not finish, and what is known of images that are gone. The lock is held: they are nobody's.
void sweep(const fs::path& root) {
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator entry(root, error); !error && entry != fs::end(entry); entry.increment(error)) {
    const std::string name = entry->path().filename().native();
    const bool of_nothing = name.starts_with(use_prefix) && !fs::exists(root / name.substr(use_prefix.size()) / manifest_file);
    if (of_nothing || name.starts_with(draft_prefix) || name.starts_with(removed_prefix)) leftovers.push_back(entry->path());
  }
  for (const fs::path& leftover : leftovers) {
    fs::remove_all(leftover, error);
    if (error) log::warn("image store: {} cannot be removed: {}", leftover.native(), error.message());
  }
}

Result<fs::path> new_directory(const fs::path& root, const ImageId& id) {
  fs::path directory = aside(root, draft_prefix, id);
  if (::mkdir(directory.c_str(), 0700) != 0)
    return fail_errno(fmt::format("image {}: mkdir {}", id, directory.native()));
  return directory;
}

// As what `image` needs the image `id`, or nothing. `itself`: the manifest of `id`, if it can be read. A delta of a set
// names the main image of its base, and means the members of that, too.
const char* need(const Manifest& image, const ImageId& id, const Manifest* itself) {
  if (image.base == id) return "the base";
  if (image.base && itself && itself->member_of == image.base) return "part of the base";
  if (std::ranges::find(image.members, id, &Member::id) != image.members.end()) return "a member";
  return nullptr;
}

Status check_indices(const Manifest& manifest, const std::map<std::string, std::string>& indices) {
  std::size_t wanted = 0;
  for (const Part& part : manifest.parts) {
    if (part.type != PartType::pages) continue;
    ++wanted;
    const auto bytes = indices.find(part.name);
    const auto file = std::ranges::find(part.files, index_file, &File::path);
    if (bytes == indices.end() || file == part.files.end())
      return fail(Errc::invalid_argument, "part {}: no index", part.name);
    if (bytes->second.size() != file->bytes || checksum_of(bytes->second) != file->xxh128)
      return fail(Errc::corrupt, "part {}: not the index that the manifest names", part.name);
  }
  if (wanted != indices.size()) return fail(Errc::invalid_argument, "{} parts, {} indices", wanted, indices.size());
  return {};
}

// The kernel itself refuses to leave `directory`, by "..", an absolute path or any link (openat2(2)).
Result<os::Fd> open_beneath(const os::Fd& directory, const std::string& path) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;  // not to wait for the writer of a fifo
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  for (;;) {
    const long fd = ::syscall(SYS_openat2, directory.get(), path.c_str(), &how, sizeof how);
    if (fd >= 0) return os::Fd(static_cast<int>(fd));
    if (errno == EXDEV || errno == ELOOP) return fail(Errc::invalid_argument, "{}: leaves the image", path);
    // EAGAIN: somebody renames beneath us at this moment and the kernel cannot be sure.
    if (errno != EINTR && errno != EAGAIN) return fail_errno(fmt::format("open {}", path));
  }
}

}  // namespace

Store::Store(fs::path root, os::Fd lock) : root_(std::move(root)), lock_(std::move(lock)) {}

Result<Store> Store::open(fs::path root) {
  std::error_code error;
  fs::create_directories(root.parent_path(), error);
  if (::mkdir(root.c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno(fmt::format("image store: mkdir {}", root.native()));
  // A store made by hand may be open to all, and it will hold the memory of applications.
  if (::chmod(root.c_str(), 0700) != 0) return fail_errno(fmt::format("image store: chmod {}", root.native()));
  YADO_ASSIGN(os::Fd lock, os::open_path(root / ".lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600), "image store");
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return fail(Errc::conflict, "image store {} belongs to another running agent", root.native());
    return fail_errno(fmt::format("image store: lock {}", root.native()));
  }
  sweep(root);
  return Store(std::move(root), std::move(lock));
}

Result<Store> Store::look_into(fs::path root) {
  YADO_TRY(os::open_path(root, O_RDONLY | O_DIRECTORY), "image store");
  return Store(std::move(root), os::Fd());
}

Result<Draft> Store::begin(const ImageId& id) const {
  YADO_PASS(check_id(id));
  const fs::path image = root_ / id.str();
  std::error_code error;
  if (fs::exists(fs::symlink_status(image / manifest_file, error)))
    return fail(Errc::already_exists, "image {} exists", id);
  // A directory without a manifest is no image, and it would be in the way of the rename.
  if (fs::exists(fs::symlink_status(image, error))) YADO_PASS(remove_directory(image, id));
  YADO_TAKE(fs::path directory, new_directory(root_, id));
  return Draft(root_, std::move(directory), id, Draft::Place::must_be_free);
}

Result<Draft> Store::begin_replacement(const ImageId& id) const {
  YADO_PASS(read(id));
  YADO_TAKE(fs::path directory, new_directory(root_, id));
  return Draft(root_, std::move(directory), id, Draft::Place::is_taken_over);
}

Result<Manifest> Store::read(const ImageId& id) const {
  YADO_PASS(check_id(id));
  auto manifest = read_manifest_file(root_ / id.str(), id);
  if (!manifest) {
    if (manifest.error().code == Errc::not_found) return fail(Errc::not_found, "there is no image {}", id);
    return context(manifest.error(), fmt::format("image {}", id));
  }
  return manifest;
}

Status Store::verify(const ImageId& id, const std::function<void(std::uint64_t)>& on_verified) const {
  YADO_TAKE(const Manifest manifest, read(id));
  YADO_TRY(compare(root_ / id.str(), manifest, Durable::no, on_verified), fmt::format("image {}", id));
  return {};
}

std::vector<Manifest> Store::list() const {
  std::vector<Manifest> images;
  std::error_code error;
  for (fs::directory_iterator entry(root_, error); !error && entry != fs::end(entry); entry.increment(error)) {
    const ImageId id(entry->path().filename().native());
    if (!valid_name(id.str())) continue;
    auto manifest = read(id);
    if (manifest)
      images.push_back(std::move(*manifest));
    else if (manifest.error().code != Errc::not_found)
      log::warn("image store: {}", manifest.error().text());
  }
  std::ranges::sort(images, {}, [](const Manifest& m) { return std::pair(m.created_wall_ms, m.id); });
  return images;
}

Status Store::remove(const ImageId& id, Dependents dependents) const {
  YADO_PASS(check_id(id));
  if (dependents == Dependents::refuse) {
    const std::vector<Manifest> images = list();
    const auto itself = std::ranges::find(images, id, &Manifest::id);
    for (const Manifest& image : images)
      if (const char* as = need(image, id, itself == images.end() ? nullptr : &*itself))
        return fail(Errc::conflict, "image {} is {} of {}: remove that first", id, as, image.id);
  }
  YADO_PASS(remove_directory(root_ / id.str(), id));
  forget_use(id);
  return forget_indices(id);
}

Status Store::remove_directory(const fs::path& directory, const ImageId& id) const {
  const fs::path removed = aside(root_, removed_prefix, id);
  if (::rename(directory.c_str(), removed.c_str()) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno(fmt::format("remove image {}", id));
  }
  // Durable before the first file goes: a power loss brings back all of it or nothing.
  YADO_TRY(sync_directory(root_), fmt::format("remove image {}", id));
  std::error_code error;
  fs::remove_all(removed, error);
  if (error) return fail_errno(error.value(), fmt::format("remove image {}", id));
  return {};
}

Status Store::keep_indices(const Manifest& manifest, const std::map<std::string, std::string>& indices) const {
  YADO_PASS(check_id(manifest.id));
  const std::string doing = fmt::format("indices of image {}", manifest.id);
  YADO_TRY(check_indices(manifest, indices), doing);
  YADO_TAKE(fs::path directory, new_directory(root_, manifest.id));
  Draft draft(root_, std::move(directory), manifest.id, Draft::Place::must_be_free);
  for (const auto& [name, bytes] : indices) {
    YADO_TRY(draft.part_directory(name), doing);
    YADO_TRY(write_new_file(draft.directory() / name / index_file, bytes), doing);
    YADO_TRY(sync_directory(draft.directory() / name), doing);
  }
  YADO_TRY(write_manifest_file(draft.directory(), manifest), doing);
  const fs::path kept = root_ / fmt::format("{}{}", indices_prefix, manifest.id);
  // Who looks finds the older ones or the newer ones. With the draft go the older ones.
  std::error_code error;
  YADO_TRY(fs::exists(kept, error) ? exchange(draft.directory(), kept) : rename_to_new(draft.directory(), kept), doing);
  return sync_directory(root_);
}

std::vector<ImageId> Store::kept() const {
  std::vector<ImageId> all;
  std::error_code error;
  for (fs::directory_iterator entry(root_, error); !error && entry != fs::end(entry); entry.increment(error)) {
    const std::string name = entry->path().filename().native();
    if (name.starts_with(indices_prefix)) all.emplace_back(name.substr(indices_prefix.size()));
  }
  return all;
}

Status Store::forget_indices(const ImageId& id) const {
  YADO_PASS(check_id(id));
  return remove_directory(root_ / fmt::format("{}{}", indices_prefix, id), id);
}

fs::path Store::use_file(const ImageId& id) const { return root_ / fmt::format("{}{}", use_prefix, id); }

void Store::forget_use(const ImageId& id) const { ::unlink(use_file(id).c_str()); }

Result<Held> Store::find(const ImageId& id) const {
  auto manifest = read(id);
  if (manifest) return Held{std::move(*manifest), root_ / id.str(), true};
  if (manifest.error().code != Errc::not_found) return std::unexpected(std::move(manifest.error()));
  const fs::path kept = root_ / fmt::format("{}{}", indices_prefix, id);
  auto other = read_manifest_file(kept, id);
  if (other) return Held{std::move(*other), kept, false};
  if (other.error().code == Errc::not_found) return std::unexpected(std::move(manifest.error()));
  return context(other.error(), fmt::format("indices of image {}", id));
}

fs::path Store::part_directory(const ImageId& id, std::string_view part) const { return root_ / id.str() / part; }

Result<os::Fd> Store::open_file(const ImageId& id, std::string_view part, std::string_view path) const {
  YADO_PASS(check_id(id));
  if (!valid_name(part) || part == manifest_file || !safe_path(path))
    return fail(Errc::invalid_argument, "image {}: \"{}/{}\" leaves the image", id, part, path);
  auto directory = os::open_path(root_ / id.str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!directory) return context(directory.error(), fmt::format("image {}", id));
  YADO_ASSIGN(os::Fd file, open_beneath(*directory, fmt::format("{}/{}", part, path)), fmt::format("image {}", id));
  struct stat s {};
  if (::fstat(file.get(), &s) != 0) return fail_errno("stat");
  if (!S_ISREG(s.st_mode)) return fail(Errc::invalid_argument, "image {}: {}/{} is no file", id, part, path);
  return file;
}

}  // namespace yado::image
