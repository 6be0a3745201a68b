#include <sys/stat.h>

#include <cerrno>
#include <functional>

#include "base/check.hpp"
#include "image/disk.hpp"
#include "image/pass.hpp"
#include "image/paths.hpp"
#include "image/store.hpp"

namespace yado::image {

namespace fs = std::filesystem;

Draft::Draft(fs::path store, fs::path directory, ImageId id, Place place)
    : store_(std::move(store)), directory_(std::move(directory)), id_(std::move(id)), place_(place) {}

Draft::Draft(Draft&& other) noexcept
    : store_(std::move(other.store_)),
      directory_(std::exchange(other.directory_, {})),
      id_(std::move(other.id_)),
      place_(other.place_),
      linked_(std::move(other.linked_)) {}

Draft& Draft::operator=(Draft&& other) noexcept {
  if (this != &other) {
    discard();
    store_ = std::move(other.store_);
    directory_ = std::exchange(other.directory_, {});
    id_ = std::move(other.id_);
    place_ = other.place_;
    linked_ = std::move(other.linked_);
  }
  return *this;
}

Draft::~Draft() { discard(); }

void Draft::discard() noexcept {
  if (directory_.empty()) return;
  std::error_code ignored;  // what stays is swept when the store is next opened
  fs::remove_all(directory_, ignored);
  directory_.clear();
}

Result<fs::path> Draft::part_directory(std::string_view name) const {
  YADO_CHECK(!directory_.empty(), "draft of {} used after commit", id_);
  if (!valid_name(name) || name == manifest_file)
    return fail(Errc::invalid_argument, "\"{}\" is not a name for a part of an image", name);
  fs::path part = directory_ / name;
  if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno(fmt::format("mkdir {}", part.native()));
  return part;
}

Result<Manifest> Draft::commit(Manifest manifest) {
  YADO_CHECK(manifest.id == id_, "manifest of {} committed as {}", manifest.id, id_);
  for (Part& part : manifest.parts) {
    if (linked_.contains(part.name)) continue;
    YADO_TAKE(const fs::path directory, part_directory(part.name));
    YADO_ASSIGN(part.files, measure_part(directory, part.type, Durable::yes), fmt::format("part {}", part.name));
  }
  YADO_TRY(publish(manifest), fmt::format("image {}", id_));
  return manifest;
}

Status Draft::commit_copy(const Manifest& manifest) {
  YADO_CHECK(manifest.id == id_, "manifest of {} committed as {}", manifest.id, id_);
  // A part without files has no directory on the sender's side of the wire.
  for (const Part& part : manifest.parts) YADO_PASS(part_directory(part.name));
  YADO_TRY(compare(directory_, manifest, Durable::yes), fmt::format("image {}", id_));
  YADO_TRY(publish(manifest), fmt::format("image {}", id_));
  return {};
}

Status Draft::link_part(const fs::path& from, const Part& part) {
  YADO_TAKE(const fs::path directory, part_directory(part.name));
  std::set<fs::path, std::greater<>> directories{directory};  // innermost first
  for (const File& file : part.files) {
    const fs::path to = directory / file.path;
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (!error) fs::create_hard_link(from / file.path, to, error);
    if (error) return fail_errno(error.value(), fmt::format("part {}: link {}", part.name, file.path));
    for (fs::path above = to.parent_path(); above != directory; above = above.parent_path()) directories.insert(above);
  }
  for (const fs::path& each : directories) YADO_PASS(sync_directory(each));
  linked_.insert(part.name);
  return {};
}

// Everything below the draft is durable when this begins; the manifest is made so; then the rename.
Status Draft::publish(const Manifest& manifest) {
  // What was written must be what a reader accepts: a name or path that it would refuse is refused now.
  YADO_PASS(manifest_from_json(to_json(manifest)));
  YADO_PASS(write_manifest_file(directory_, manifest));
  if (place_ == Place::is_taken_over) return take_the_place();
  const fs::path image = store_ / id_.str();
  YADO_PASS(rename_to_new(directory_, image));
  if (Status durable = sync_directory(store_); !durable) {
    // Nobody was told of the image yet: rather none than one that a power loss may take back.
    if (rename_to_new(image, directory_)) return durable;
    directory_.clear();
    return durable;
  }
  directory_.clear();
  return {};
}

Status Draft::take_the_place() {
  const fs::path image = store_ / id_.str();
  YADO_PASS(exchange(directory_, image));
  if (Status durable = sync_directory(store_); !durable) {
    // Whichever of the two is deleted must not be the one that a power loss brings back.
    if (!exchange(directory_, image)) directory_.clear();
    return durable;
  }
  discard();  // the old one
  return {};
}

}  // namespace yado::image
