#include "agent/memory_host.hpp"

#include <unistd.h>

#include "os/clock.hpp"

namespace yado::agent {
namespace {

constexpr const char* part_name = "memory";

/// "bigvm-img.3.h2" -> "bigvm-img.3". Whoever may open a session may name images of its own making only.
Result<ImageId> main_image_of(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  if (!valid_name(name) || dot == std::string::npos || name.find("-img.") == std::string::npos)
    return fail(Errc::invalid_argument, "\"{}\" is no name of a share: <workload>-img.<number>.<host>", name);
  return ImageId(name.substr(0, dot));
}

/// A session is a workload's, and makes images <workload>-img.<number> only. It may read others': a clone does (and every agent may pull every image).
Status belongs(const std::string& session, const std::string& name) {
  if (valid_name(name) && name.starts_with(session + "-img.")) return {};
  return fail(Errc::permission, "image {} is none of {}", name, session);
}

}  // namespace

Result<std::filesystem::path> MemoryArchive::begin(const std::string& session, const std::string& name, const std::string& base) {
  YADO_TRY(belongs(session, name), "share");
  if (!base.empty()) YADO_TRY(belongs(session, base), "share");
  YADO_TRY(main_image_of(name), "share");
  YADO_ASSIGN(image::Draft draft, store_.begin(ImageId(name)), "share");
  YADO_ASSIGN(std::filesystem::path part, draft.part_directory(part_name), "share");
  const std::lock_guard lock(mutex_);
  drafts_.insert_or_assign(name, Unfinished{std::move(draft), base});
  return part;
}

Result<std::string> MemoryArchive::keep(const std::string& session, const std::string& name, const image::PageIndex&) {
  YADO_TRY(belongs(session, name), "share");
  YADO_ASSIGN(const ImageId main, main_image_of(name), "share");
  auto found = [&] {
    const std::lock_guard lock(mutex_);
    return drafts_.extract(name);
  }();
  if (!found) return fail(Errc::not_found, "no share {} is being saved", name);
  auto& [draft, base] = found.mapped();
  image::Manifest manifest;
  manifest.id = ImageId(name);
  manifest.workload = WorkloadId(session);
  manifest.created_wall_ms = os::wall_ms();
  manifest.parts = {{image::PartType::pages, part_name, {}}};
  manifest.member_of = main;
  if (!base.empty()) manifest.base = ImageId(base);
  YADO_ASSIGN(manifest, draft.commit(manifest), "share");
  added_(manifest);
  return image::checksum_of_manifest(manifest);
}

void MemoryArchive::abandon(const std::string&, const std::string& name) {
  const std::lock_guard lock(mutex_);
  drafts_.erase(name);
}

Result<std::filesystem::path> MemoryArchive::open(const std::string&, const std::string& name) {
  if (!valid_name(name)) return fail(Errc::invalid_argument, "\"{}\" is no name of an image", name);
  YADO_ASSIGN(const image::Held held, store_.find(ImageId(name)), "share");
  return held.directory;
}

std::uint64_t memory_to_offer() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) / 2;
}

}  // namespace yado::agent
