#include "image/disk.hpp"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <set>

#include "base/check.hpp"
#include "base/units.hpp"
#include "image/checksum.hpp"
#include "image/extents.hpp"
#include "image/page_files.hpp"
#include "image/page_part.hpp"
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

bool is_log(PartType type, const Tree& tree, std::string_view path) {
  return type == PartType::pages && path == log_file && std::ranges::binary_search(tree.files, index_file);
}

// Its length, and what of it is data, without reading it.
Result<File> measure_log(const fs::path& part, Durable durable) {
  YADO_TAKE(const PagePart pages, PagePart::open(part));  // the length is what the index says
  File file{std::string(log_file), pages.index().log_slots() * page_bytes, "", std::string(index_file)};
  std::uint64_t data_bytes = 0;
  for (std::uint64_t at = 0; at < file.bytes;) {
    YADO_ASSIGN(const Extent data, next_data(pages.log(), at, file.bytes), log_file);
    data_bytes += data.bytes();
    at = data.end;
  }
  if (data_bytes < file.bytes) file.data_bytes = data_bytes;
  if (durable == Durable::yes) YADO_PASS(sync_file(pages.log(), log_file));
  return file;
}

Status compare_tree(const Tree& tree, const Part& part) {
  std::set<std::string_view> expected;
  for (const File& file : part.files) expected.insert(file.path);
  for (const std::string& path : tree.files)
    if (!expected.contains(path)) return fail(Errc::corrupt, "{}: not in the manifest", path);
  for (const std::string_view path : expected)
    if (!std::ranges::binary_search(tree.files, path)) return fail(Errc::corrupt, "{}: is missing", path);
  return {};
}

Status compare_file(const fs::path& part, const File& file, Durable durable) {
  YADO_TAKE(const FileSum sum, measure(part / file.path, durable));
  if (sum.bytes != file.bytes)
    return fail(Errc::corrupt, "{}: {} bytes instead of {}", file.path, sum.bytes, file.bytes);
  if (sum.xxh128 != file.xxh128) return fail(Errc::corrupt, "{}: checksum differs", file.path);
  return {};
}

Status compare_log(const fs::path& part, Durable durable, const OnCompared& on_compared) {
  YADO_TAKE(const PagePart pages, PagePart::open(part));
  YADO_PASS(pages.scan(pages.in_file_order(), [&](PageNumber, std::optional<PageContents> contents) {
    if (contents && on_compared) on_compared(page_bytes);
    return Status();
  }));
  return durable == Durable::yes ? sync_file(pages.log(), log_file) : Status();
}

Status compare_part(const fs::path& directory, const Part& part, Durable durable, const OnCompared& on_compared) {
  std::error_code error;
  if (!fs::is_directory(fs::symlink_status(directory, error))) return fail(Errc::corrupt, "its directory is missing");
  YADO_TAKE(const Tree tree, tree_of(directory));
  YADO_PASS(compare_tree(tree, part));
  // Lengths first: they cost nothing, and most damage shows there.
  for (const File& file : part.files) {
    const auto bytes = fs::file_size(directory / file.path, error);
    if (error) return fail_errno(error.value(), fmt::format("stat {}", file.path));
    if (bytes != file.bytes) return fail(Errc::corrupt, "{}: {} bytes instead of {}", file.path, bytes, file.bytes);
  }
  for (const File& file : part.files) {
    if (!file.proved_by.empty()) continue;
    YADO_PASS(compare_file(directory, file, durable));
    if (on_compared) on_compared(file.data_bytes.value_or(file.bytes));
  }
  // After its index, which proves it.
  for (const File& file : part.files) {
    if (file.proved_by.empty()) continue;  // only a log is
    YADO_PASS(compare_log(directory, durable, on_compared));
  }
  if (durable == Durable::yes) return sync_tree(directory, tree);
  return {};
}

}  // namespace

Result<std::vector<File>> measure_part(const fs::path& part, PartType type, Durable durable) {
  YADO_TAKE(const Tree tree, tree_of(part));
  std::vector<File> files;
  for (const std::string& path : tree.files) {
    if (is_log(type, tree, path)) {
      YADO_TAKE(File log, measure_log(part, durable));
      files.push_back(std::move(log));
      continue;
    }
    YADO_TAKE(FileSum sum, measure(part / path, durable));
    File file{path, sum.bytes, std::move(sum.xxh128)};
    if (sum.data_bytes < sum.bytes) file.data_bytes = sum.data_bytes;
    files.push_back(std::move(file));
  }
  if (durable == Durable::yes) YADO_PASS(sync_tree(part, tree));
  return files;
}

Status compare(const fs::path& image, const Manifest& manifest, Durable durable, const OnCompared& on_compared) {
  std::set<std::string> parts;
  for (const Part& part : manifest.parts) {
    parts.insert(part.name);
    YADO_TRY(compare_part(image / part.name, part, durable, on_compared), fmt::format("part {}", part.name));
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

Status exchange(const fs::path& one, const fs::path& other) {
  if (::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) != 0)
    return fail_errno(fmt::format("exchange {} and {}", one.native(), other.filename().native()));
  return {};
}

}  // namespace yado::image
