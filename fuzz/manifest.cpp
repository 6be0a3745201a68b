// The manifest of an image, from a disk or from a peer. The checksum in it finds damage; against malice it must be
// right whatever it says, so every input is tried with the checksum that belongs to it, too.

#include "image/manifest.hpp"

#include <nlohmann/json.hpp>
#include <set>

#include "api/json.hpp"
#include "base/check.hpp"
#include "image/checksum.hpp"

using namespace yado;

namespace {

/// Joined to a directory, such a path stays in it.
void check_path(const std::string& path) {
  YADO_CHECK(!path.empty() && path.front() != '/' && path.find('\0') == path.npos, "unsafe path \"{}\"", path);
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string_view component = std::string_view(path).substr(at, end - at);
    YADO_CHECK(component != ".." && component != "." && !component.empty(), "unsafe path \"{}\"", path);
    at = end + 1;
  }
}

void check(std::string_view text) {
  const auto manifest = image::manifest_from_json(text);
  if (!manifest) {
    YADO_CHECK(manifest.error().code == Errc::corrupt || manifest.error().code == Errc::unsupported, "{}",
               manifest.error().text());
    return;
  }
  YADO_CHECK(valid_name(manifest->id.str()) && valid_name(manifest->workload.str()), "{}", manifest->id);
  for (const image::Part& part : manifest->parts) {
    YADO_CHECK(valid_name(part.name), "part \"{}\"", part.name);
    std::set<std::string> paths;
    for (const image::File& file : part.files) {
      check_path(file.path);
      YADO_CHECK(paths.insert(file.path).second, "\"{}\" is there twice", file.path);
      YADO_CHECK(file.xxh128.empty() != file.proved_by.empty(), "\"{}\" is proved by nothing", file.path);
      YADO_CHECK(file.data_bytes.value_or(0) <= file.bytes, "\"{}\" has more data than length", file.path);
    }
    for (const image::File& file : part.files)
      YADO_CHECK(file.proved_by.empty() || paths.contains(file.proved_by), "\"{}\" has no proof", file.path);
  }
  YADO_CHECK(manifest->members.empty() || !manifest->member_of, "{} is a main image and a member", manifest->id);
  std::set<ImageId> members{manifest->id};
  for (const image::Member& member : manifest->members) {
    YADO_CHECK(valid_name(member.id.str()) && valid_name(member.host.str()), "member {}", member.id);
    YADO_CHECK(members.insert(member.id).second, "member {} is there twice", member.id);
  }
  const auto again = image::manifest_from_json(image::to_json(*manifest));
  YADO_CHECK(again, "{}", again.error().text());
  YADO_CHECK(*again == *manifest, "the manifest changed when it was written and read again");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check(text);
  auto tree = api::parse_json(text);
  if (!tree || !tree->is_object()) return 0;
  tree->erase("checksum");
  (*tree)["checksum"] = image::checksum_of(api::dump(*tree));
  check(api::dump(*tree));
  return 0;
}
