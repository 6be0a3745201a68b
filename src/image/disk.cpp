#include "image/disk.hpp"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <set>

#include "base/check.hpp"
#include "base/units.hpp"
#include "image/checksum.hpp"
#include "image/pass.hpp"
#include "image/paths.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;

struct Tree {
  std::vector<std::string> files;        // relative, sorted
  std::vector<std::string> directories;  // relative, innermost first; without the part's own
};

Result<Tree> tree_of(const fs::path& part) {
  Tree tree;
  std::error_code error;
  fs::recursive_directory_iterator entry(part, fs::directory_options::none, error);
  for (; !error && entry != fs::end(entry); entry.increment(error)) {
    const std::string relative = entry->path().lexically_relative(part).native();
    const fs::file_status status = entry->symlink_status(error);
    if (error) break;
    if (!safe_path(relative)) return fail(Errc::corrupt, "{}: not a name for a file of an image", relative);
    if (status.type() == fs::file_type::directory)
      tree.directories.push_back(relative);
    else if (status.type() == fs::file_type::regular)
      tree.files.push_back(relative);
    else
      return fail(Errc::corrupt, "{}: neither a file nor a directory", relative);
  }
  if (error) return fail_errno(error.value(), fmt::format("read {}", part.native()));
  std::ranges::sort(tree.files);
  std::ranges::sort(tree.directories, std::greater{});  // "a/b" comes before "a"
  return tree;
}

Status sync_file(const os::Fd& file, std::string_view what) {
  if (::fsync(file.get()) != 0) return fail_errno(fmt::format("fsync {}", what));
  return {};
}

Result<FileSum> measure(const fs::path& path, Durable durable) {
  YADO_TAKE(const os::Fd file, os::open_path(path, O_RDONLY | O_NOFOLLOW));
  YADO_ASSIGN(FileSum sum, checksum_of(file), path.native());
  // After reading: the pages are on their way to the disk while they are summed up.
  if (durable == Durable::yes) YADO_PASS(sync_file(file, path.native()));
  return sum;
}

Status sync_tree(const fs::path& part, const Tree& tree) {
  for (const std::string& directory : tree.directories) YADO_PASS(sync_directory(part / directory));
  return sync_directory(part);
}

Status compare_part(const fs::path& directory, const Part& part, Durable durable) {
  std::error_code error;
  if (!fs::is_directory(fs::symlink_status(directory, error))) return fail(Errc::corrupt, "its directory is missing");
  YADO_TAKE(const Tree tree, tree_of(directory));

  std::map<std::string_view, const File*> expected;
  for (const File& file : part.files) expected.emplace(file.path, &file);
  for (const std::string& path : tree.files)
    if (!expected.contains(path)) return fail(Errc::corrupt, "{}: not in the manifest", path);
  for (const auto& [path, file] : expected)
    if (!std::ranges::binary_search(tree.files, path)) return fail(Errc::corrupt, "{}: is missing", path);

  // Lengths first: they cost nothing, and most damage shows there.
  for (const auto& [path, file] : expected) {
    const auto bytes = fs::file_size(directory / path, error);
    if (error) return fail_errno(error.value(), fmt::format("stat {}", path));
    if (bytes != file->bytes) return fail(Errc::corrupt, "{}: {} bytes instead of {}", path, bytes, file->bytes);
  }
  for (const auto& [path, file] : expected) {
    YADO_TAKE(const FileSum sum, measure(directory / path, durable));
    if (sum.bytes != file->bytes)
      return fail(Errc::corrupt, "{}: {} bytes instead of {}", path, sum.bytes, file->bytes);
    if (sum.xxh128 != file->xxh128) return fail(Errc::corrupt, "{}: checksum differs", path);
  }
  if (durable == Durable::yes) return sync_tree(directory, tree);
  return {};
}

}  // namespace

Result<std::vector<File>> measure_part(const fs::path& part, Durable durable) {
  YADO_TAKE(const Tree tree, tree_of(part));
  std::vector<File> files;
  for (const std::string& path : tree.files) {
    YADO_TAKE(FileSum sum, measure(part / path, durable));
    files.push_back({path, sum.bytes, std::move(sum.xxh128)});
  }
  if (durable == Durable::yes) YADO_PASS(sync_tree(part, tree));
  return files;
}

Status compare(const fs::path& image, const Manifest& manifest, Durable durable) {
  std::set<std::string> parts;
  for (const Part& part : manifest.parts) {
    parts.insert(part.name);
    YADO_TRY(compare_part(image / part.name, part, durable), fmt::format("part {}", part.name));
  }
  std::error_code error;
  fs::directory_iterator entry(image, error);
  for (; !error && entry != fs::end(entry); entry.increment(error)) {
    const std::string name = entry->path().filename().native();
    if (name != manifest_file && !parts.contains(name)) return fail(Errc::corrupt, "{}: not in the manifest", name);
  }
  if (error) return fail_errno(error.value(), fmt::format("read {}", image.native()));
  return {};
}

Result<Manifest> read_manifest_file(const fs::path& image, const ImageId& id) {
  const fs::path path = image / manifest_file;
  YADO_TAKE(const os::Fd file, os::open_path(path, O_RDONLY | O_NOFOLLOW));
  struct stat s {};
  if (::fstat(file.get(), &s) != 0) return fail_errno("stat manifest");
  if (!S_ISREG(s.st_mode) || static_cast<std::uint64_t>(s.st_size) > 64_MiB)
    return fail(Errc::corrupt, "manifest: no regular file of at most 64 MiB");
  YADO_TAKE(const std::string text, os::read_text(path));
  auto manifest = manifest_from_json(text);
  if (manifest && manifest->id != id)
    return fail(Errc::corrupt, "manifest: id: is {}, in the directory of {}", manifest->id, id);
  return manifest;
}

Status write_manifest_file(const fs::path& image, const Manifest& manifest) {
  const fs::path path = image / manifest_file;
  YADO_TAKE(const os::Fd file, os::open_path(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
  YADO_TRY(os::write_all(file, to_json(manifest)), path.native());
  YADO_PASS(sync_file(file, path.native()));
  return sync_directory(image);
}

Status sync_directory(const fs::path& directory) {
  YADO_TAKE(const os::Fd fd, os::open_path(directory, O_RDONLY | O_DIRECTORY));
  return sync_file(fd, directory.native());
}

fs::path aside(const fs::path& store, std::string_view prefix, const ImageId& id) {
  std::uint64_t number = 0;
  YADO_CHECK(::getrandom(&number, sizeof number, 0) == sizeof number, "getrandom");
  return store / fmt::format("{}{}-{:016x}", prefix, id, number);
}

Status rename_to_new(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) != 0)
    return fail_errno(fmt::format("rename {} to {}", from.native(), to.filename().native()));
  return {};
}

}  // namespace yado::image
