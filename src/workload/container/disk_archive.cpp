#include "workload/container/disk_archive.hpp"

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include <archive.h>
#include <archive_entry.h>
#include <sys/stat.h>
#include <unistd.h>

namespace yado::container {
namespace {

namespace fs = std::filesystem;

struct Free {
  void operator()(archive_entry* entry) const { archive_entry_free(entry); }
  void operator()(archive_entry_linkresolver* resolver) const { archive_entry_linkresolver_free(resolver); }
};
struct FreeReader { void operator()(archive* a) const { archive_read_free(a); } };
struct FreeWriter { void operator()(archive* a) const { archive_write_free(a); } };
using Reader = std::unique_ptr<archive, FreeReader>;
using Writer = std::unique_ptr<archive, FreeWriter>;

std::unexpected<Error> fail_archive(archive* of, const std::string& doing) {
  const char* text = archive_error_string(of);
  const int number = archive_errno(of);
  // libarchive's own codes are negative or large; a small positive one is errno.
  if (number == ENOSPC || number == EDQUOT) return fail(Errc::no_space, "{}: {}", doing, text ? text : "no space");
  if (number > 0 && number < 200) return fail_errno(number, doing);
  return fail(Errc::corrupt, "{}: {}", doing, text ? text : "unknown error");
}

/// Copies the content, block by block with its offset, so that holes stay holes.
Status copy_data(archive* from, archive* to, bool to_disk, const std::string& name) {
  std::int64_t written = 0;
  for (;;) {
    const void* block;
    std::size_t bytes;
    la_int64_t offset;
    const int got = archive_read_data_block(from, &block, &bytes, &offset);
    if (got == ARCHIVE_EOF) return {};
    if (got < ARCHIVE_WARN) return fail_archive(from, "read " + name);
    if (to_disk) {
      if (archive_write_data_block(to, block, bytes, offset) < ARCHIVE_WARN) return fail_archive(to, "write " + name);
      continue;
    }
    // A pax writer takes the bytes in a row; it skips the holes named in the header by itself when they come as zeros.
    static constexpr char zeros[65536]{};
    while (written < offset) {
      const auto part = std::min<std::int64_t>(offset - written, sizeof zeros);
      if (archive_write_data(to, zeros, static_cast<std::size_t>(part)) < 0) return fail_archive(to, "write " + name);
      written += part;
    }
    if (archive_write_data(to, block, bytes) < 0) return fail_archive(to, "write " + name);
    written += static_cast<std::int64_t>(bytes);
  }
}

Status write_entry(archive* to, archive* from, archive_entry* entry, bool with_data) {
  const std::string name = archive_entry_pathname(entry);
  if (archive_write_header(to, entry) < ARCHIVE_WARN) return fail_archive(to, "write " + name);
  if (with_data && archive_entry_size(entry) > 0) YADO_TRY(copy_data(from, to, false, name), "disk");
  return {};
}

/// Of overlayfs's own marks only those travel that say what a directory shows. The others (origin, impure, uuid)
/// point at files of this very lower layer.
void keep_portable_marks(archive_entry* entry) {
  struct Mark {
    std::string name, value;
  };
  std::vector<Mark> kept;
  const char* name;
  const void* value;
  std::size_t bytes;
  archive_entry_xattr_reset(entry);
  while (archive_entry_xattr_next(entry, &name, &value, &bytes) == ARCHIVE_OK) {
    const std::string_view mark = name;
    if (mark.starts_with("trusted.overlay.") && mark != "trusted.overlay.opaque" && mark != "trusted.overlay.redirect")
      continue;
    kept.push_back({name, std::string(static_cast<const char*>(value), bytes)});
  }
  archive_entry_xattr_clear(entry);
  for (const Mark& mark : kept) archive_entry_xattr_add_entry(entry, mark.name.c_str(), mark.value.data(), mark.value.size());
}

Status pack(const fs::path& upper, const fs::path& file) {
  const Reader disk(archive_read_disk_new());
  archive_read_disk_set_symlink_physical(disk.get());
  archive_read_disk_set_behavior(disk.get(), ARCHIVE_READDISK_MAC_COPYFILE | ARCHIVE_READDISK_NO_TRAVERSE_MOUNTS);
  const Writer tar(archive_write_new());
  archive_write_set_format_pax_restricted(tar.get());
  archive_write_set_options(tar.get(), "hdrcharset=BINARY");
  if (archive_write_open_filename(tar.get(), file.c_str()) != ARCHIVE_OK) return fail_archive(tar.get(), "open " + file.native());
  const std::unique_ptr<archive_entry_linkresolver, Free> links(archive_entry_linkresolver_new());
  archive_entry_linkresolver_set_strategy(links.get(), archive_format(tar.get()));

  if (archive_read_disk_open(disk.get(), upper.c_str()) != ARCHIVE_OK) return fail_archive(disk.get(), "read " + upper.native());
  const std::size_t prefix = upper.native().size();
  for (;;) {
    std::unique_ptr<archive_entry, Free> owned(archive_entry_new());
    archive_entry* entry = owned.get();
    const int got = archive_read_next_header2(disk.get(), entry);
    if (got == ARCHIVE_EOF) break;
    if (got < ARCHIVE_WARN) return fail_archive(disk.get(), "read " + upper.native());
    archive_read_disk_descend(disk.get());
    if (archive_entry_filetype(entry) == AE_IFSOCK) continue;
    const std::string path = archive_entry_pathname(entry);
    archive_entry_set_pathname(entry, ("." + path.substr(prefix)).c_str());
    archive_entry_set_uname(entry, nullptr);
    archive_entry_set_gname(entry, nullptr);
    keep_portable_marks(entry);
    archive_entry* later = nullptr;
    archive_entry_linkify(links.get(), &entry, &later);
    if (entry != nullptr) YADO_TRY(write_entry(tar.get(), disk.get(), entry, true), "disk part");
    if (entry != owned.get()) (void)owned.release();  // the resolver has taken it
  }
  if (archive_write_close(tar.get()) != ARCHIVE_OK) return fail_archive(tar.get(), "finish " + file.native());
  return {};
}

}  // namespace

Status pack_disk(const fs::path& upper, const fs::path& part) {
  const fs::path file = part / "upper.tar";
  Status packed = pack(upper, file);
  if (!packed) ::unlink(file.c_str());
  return packed;
}

Status unpack_disk(const fs::path& part, const fs::path& upper) { return unpack_archive(part / "upper.tar", upper); }

Status unpack_archive(const fs::path& file, const fs::path& into) {
  const Reader tar(archive_read_new());
  archive_read_support_format_all(tar.get());
  archive_read_support_filter_all(tar.get());
  if (archive_read_open_filename(tar.get(), file.c_str(), 1 << 18) != ARCHIVE_OK) return fail_archive(tar.get(), "open " + file.native());
  const Writer disk(archive_write_disk_new());
  archive_write_disk_set_options(disk.get(), ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME |
                                                 ARCHIVE_EXTRACT_XATTR | ARCHIVE_EXTRACT_ACL |
                                                 ARCHIVE_EXTRACT_SPARSE | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                                                 ARCHIVE_EXTRACT_SECURE_SYMLINKS);
  for (;;) {
    archive_entry* entry = nullptr;
    const int got = archive_read_next_header(tar.get(), &entry);
    if (got == ARCHIVE_EOF) break;
    if (got < ARCHIVE_WARN) return fail_archive(tar.get(), "read " + file.native());
    // "/x", "./x" and "x" are the same file of the archive.
    const auto inside = [&](const char* name) -> std::string {
      std::string_view rest = name;
      while (rest.starts_with('/') || rest.starts_with("./")) rest.remove_prefix(rest.starts_with('/') ? 1 : 2);
      return rest.empty() || rest == "." ? into.native() : (into / rest).native();
    };
    const std::string name = archive_entry_pathname(entry);
    archive_entry_set_pathname(entry, inside(name.c_str()).c_str());
    if (const char* link = archive_entry_hardlink(entry)) archive_entry_set_hardlink(entry, inside(link).c_str());
    archive_entry_set_uname(entry, nullptr);
    archive_entry_set_gname(entry, nullptr);
    if (archive_write_header(disk.get(), entry) < ARCHIVE_WARN) return fail_archive(disk.get(), "unpack " + name);
    if (archive_entry_size(entry) > 0) YADO_TRY(copy_data(tar.get(), disk.get(), true, name), file.native());
    if (archive_write_finish_entry(disk.get()) < ARCHIVE_WARN) return fail_archive(disk.get(), "unpack " + name);
  }
  if (archive_write_close(disk.get()) < ARCHIVE_WARN) return fail_archive(disk.get(), "unpack " + file.native());
  return {};
}

}  // namespace yado::container
