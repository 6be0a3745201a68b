#include "image/manifest.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "base/units.hpp"
#include "image/checksum.hpp"
#include "image/page_files.hpp"
#include "image/pass.hpp"
#include "image/paths.hpp"

namespace yado::image {
namespace {

using nlohmann::json;

constexpr std::string_view format_name = "yado-image";
constexpr int newest_version = 2;
constexpr std::size_t longest_manifest = 64_MiB;
constexpr int deepest = 16;

constexpr PartType part_types[] = {PartType::criu, PartType::pages, PartType::device_state, PartType::disk, PartType::disk_delta};

// Sorted keys and no white space are what nlohmann writes by default: its text is the canonical one.
std::string canonical(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// The lowest that a reader has to know: what needs nothing new is still read by older ones.
int version_of(const Manifest& manifest) {
  if (!manifest.members.empty() || manifest.member_of || manifest.stands_for) return 2;
  for (const Part& part : manifest.parts)
    for (const File& file : part.files)
      if (!file.proved_by.empty()) return 2;
  return 1;
}

json to_value(const File& file) {
  json value{{"path", file.path}, {"bytes", file.bytes}};
  if (file.proved_by.empty())
    value["xxh128"] = file.xxh128;
  else
    value["proved_by"] = file.proved_by;
  if (file.data_bytes) value["data_bytes"] = *file.data_bytes;
  return value;
}

json to_value(const Manifest& manifest) {
  json parts = json::array();
  for (const Part& part : manifest.parts) {
    json files = json::array();
    for (const File& file : part.files) files.push_back(to_value(file));
    parts.push_back({{"type", name_of(part.type)}, {"name", part.name}, {"files", std::move(files)}});
  }
  json value{{"format", format_name},           {"version", version_of(manifest)},
             {"id", manifest.id.str()},         {"workload", manifest.workload.str()},
             {"spec_hash", manifest.spec_hash}, {"created_wall_ms", manifest.created_wall_ms},
             {"parts", std::move(parts)},       {"properties", manifest.properties}};
  if (manifest.base) value["base"] = manifest.base->str();
  for (const Member& member : manifest.members)
    value["members"].push_back({{"id", member.id.str()}, {"host", member.host.str()}, {"xxh128", member.xxh128}});
  if (manifest.member_of) value["member_of"] = manifest.member_of->str();
  if (manifest.stands_for) value["stands_for"] = *manifest.stands_for;
  return value;
}

std::unexpected<Error> wrong(const std::string& field, std::string_view what) {
  return fail(Errc::corrupt, "manifest: {}: {}", field, what);
}

Result<const json*> member(const json& object, const std::string& path, std::string_view key, json::value_t type,
                           std::string_view type_name) {
  const std::string field = path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
  if (!object.is_object()) return wrong(path.empty() ? "text" : path, "is not an object");
  const auto found = object.find(key);
  if (found == object.end()) return wrong(field, "is missing");
  const bool fits = type == json::value_t::number_integer ? found->is_number_integer() : found->type() == type;
  if (!fits) return wrong(field, fmt::format("is not {}", type_name));
  return &*found;
}

Result<std::string> text(const json& object, const std::string& path, std::string_view key) {
  YADO_TAKE(const json* value, member(object, path, key, json::value_t::string, "a string"));
  return value->get_ref<const std::string&>();
}

Result<std::string> name(const json& object, const std::string& path, std::string_view key) {
  auto value = text(object, path, key);
  if (value && !valid_name(*value))
    return wrong(path.empty() ? std::string(key) : fmt::format("{}.{}", path, key), "is not a valid name");
  return value;
}

Result<const json*> integer(const json& object, std::string_view path, std::string_view key) {
  return member(object, std::string(path), key, json::value_t::number_integer, "a whole number");
}

Result<std::uint64_t> count(const json& object, const std::string& path, std::string_view key) {
  YADO_TAKE(const json* value, integer(object, path, key));
  if (!value->is_number_unsigned()) return wrong(fmt::format("{}.{}", path, key), "is negative");
  return value->get<std::uint64_t>();
}

Result<std::string> hex_sum(const json& object, const std::string& path, std::string_view key) {
  auto value = text(object, path, key);
  if (value && (value->size() != 32 || value->find_first_not_of("0123456789abcdef") != std::string::npos))
    return wrong(path.empty() ? std::string(key) : fmt::format("{}.{}", path, key), "is not 32 hex digits");
  return value;
}

Result<File> read_file(const json& value, const std::string& path) {
  File file;
  YADO_TAKE(file.path, text(value, path, "path"));
  if (!safe_path(file.path)) return wrong(path + ".path", "leaves its part or is no path");
  YADO_TAKE(file.bytes, count(value, path, "bytes"));
  if (value.contains("proved_by")) {
    YADO_TAKE(file.proved_by, text(value, path, "proved_by"));
    if (file.path != log_file || file.proved_by != index_file)
      return wrong(path + ".proved_by", fmt::format("is not {} for {}", index_file, log_file));
    if (value.contains("xxh128")) return wrong(path, "has xxh128 and proved_by");
  } else {
    YADO_TAKE(file.xxh128, hex_sum(value, path, "xxh128"));
  }
  if (value.contains("data_bytes")) {
    YADO_TAKE(file.data_bytes, count(value, path, "data_bytes"));
    if (*file.data_bytes > file.bytes) return wrong(path + ".data_bytes", "is more than bytes");
  }
  return file;
}

// A log is proved by its index, and that by its checksum.
Status check_proofs(const Part& part, const std::string& path) {
  for (const File& file : part.files) {
    if (file.proved_by.empty()) continue;
    if (part.type != PartType::pages) return wrong(path + ".files", "proved_by in a part that is not of type pages");
    if (std::ranges::find(part.files, file.proved_by, &File::path) == part.files.end())
      return wrong(path + ".files", fmt::format("{} is proved by {}, which is not there", file.path, file.proved_by));
  }
  return {};
}

Result<Part> read_part(const json& value, const std::string& path) {
  Part part;
  YADO_TAKE(const std::string type, text(value, path, "type"));
  const auto known = std::ranges::find(part_types, type, [](PartType t) { return name_of(t); });
  if (known == std::end(part_types)) return wrong(path + ".type", "is none of criu, pages, device-state, disk");
  part.type = *known;
  YADO_TAKE(part.name, name(value, path, "name"));
  if (part.name == manifest_file) return wrong(path + ".name", "is the manifest's own");
  YADO_TAKE(const json* files, member(value, path, "files", json::value_t::array, "an array"));
  std::set<std::string> paths;
  for (std::size_t i = 0; i < files->size(); ++i) {
    const std::string place = fmt::format("{}.files[{}]", path, i);
    YADO_TAKE(File file, read_file((*files)[i], place));
    if (!paths.insert(file.path).second) return wrong(place + ".path", "is there twice");
    part.files.push_back(std::move(file));
  }
  // "a" and "a/b" cannot both be files; found here and not when half of a copy is written.
  for (const std::string& file : paths)
    for (auto slash = file.find('/'); slash != std::string::npos; slash = file.find('/', slash + 1))
      if (paths.contains(file.substr(0, slash)))
        return wrong(path + ".files", fmt::format("{} is a file and a directory", file.substr(0, slash)));
  YADO_PASS(check_proofs(part, path));
  return part;
}

Result<std::optional<ImageId>> other_image(const json& value, const Manifest& manifest, std::string_view key) {
  if (!value.contains(key)) return std::nullopt;
  YADO_TAKE(std::string id, name(value, "", key));
  if (id == manifest.id.str()) return wrong(std::string(key), "is the image itself");
  return ImageId(std::move(id));
}

Result<std::vector<Member>> read_members(const json& value, const Manifest& manifest) {
  std::vector<Member> members;
  if (!value.contains("members")) return members;
  YADO_TAKE(const json* list, member(value, "", "members", json::value_t::array, "an array"));
  std::set<std::string> ids{manifest.id.str()};
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string path = fmt::format("members[{}]", i);
    YADO_TAKE(std::string id, name((*list)[i], path, "id"));
    YADO_TAKE(std::string host, name((*list)[i], path, "host"));
    YADO_TAKE(std::string sum, hex_sum((*list)[i], path, "xxh128"));
    if (!ids.insert(id).second) return wrong(path + ".id", "is there twice, or the image itself");
    members.push_back({ImageId(std::move(id)), HostId(std::move(host)), std::move(sum)});
  }
  return members;
}

Result<Manifest> read_manifest(json& value) {
  YADO_TAKE(const std::string format, text(value, "", "format"));
  if (format != format_name) return wrong("format", "is not yado-image");
  YADO_TAKE(const json* version, integer(value, "", "version"));
  if (*version < 1 || *version > newest_version)
    return fail(Errc::unsupported, "manifest: version {} is not one this yado reads (1 to {})", canonical(*version),
                newest_version);

  YADO_TAKE(const std::string checksum, text(value, "", "checksum"));
  value.erase("checksum");
  if (checksum_of(canonical(value)) != checksum) return wrong("checksum", "differs");

  Manifest manifest;
  YADO_TAKE(std::string id, name(value, "", "id"));
  manifest.id = ImageId(std::move(id));
  YADO_TAKE(std::string workload, name(value, "", "workload"));
  manifest.workload = WorkloadId(std::move(workload));
  YADO_TAKE(manifest.spec_hash, text(value, "", "spec_hash"));
  YADO_TAKE(const json* created, integer(value, "", "created_wall_ms"));
  manifest.created_wall_ms = created->get<std::int64_t>();
  YADO_TAKE(manifest.base, other_image(value, manifest, "base"));
  YADO_TAKE(manifest.members, read_members(value, manifest));
  YADO_TAKE(manifest.member_of, other_image(value, manifest, "member_of"));
  if (manifest.member_of && !manifest.members.empty()) return wrong("member_of", "a member has no members");
  if (value.contains("stands_for")) {
    YADO_TAKE(manifest.stands_for, hex_sum(value, "", "stands_for"));
  }
  YADO_TAKE(const json* parts, member(value, "", "parts", json::value_t::array, "an array"));
  std::set<std::string> names;
  for (std::size_t i = 0; i < parts->size(); ++i) {
    const std::string path = fmt::format("parts[{}]", i);
    YADO_TAKE(Part part, read_part((*parts)[i], path));
    if (!names.insert(part.name).second) return wrong(path + ".name", "is there twice");
    manifest.parts.push_back(std::move(part));
  }
  YADO_TAKE(const json* properties, member(value, "", "properties", json::value_t::object, "an object"));
  for (auto it = properties->begin(); it != properties->end(); ++it) {
    if (!it->is_string()) return wrong(fmt::format("properties.{}", it.key()), "is not a string");
    manifest.properties[it.key()] = it->get_ref<const std::string&>();
  }
  return manifest;
}

}  // namespace

std::string_view name_of(PartType type) {
  switch (type) {
    case PartType::criu:
      return "criu";
    case PartType::pages:
      return "pages";
    case PartType::device_state:
      return "device-state";
    case PartType::disk:
      return "disk";
    case PartType::disk_delta:
      return "disk-delta";
  }
  return "unknown";
}

std::uint64_t Manifest::bytes() const {
  std::uint64_t total = 0;
  for (const Part& part : parts)
    for (const File& file : part.files) total += file.bytes;
  return total;
}

std::uint64_t Manifest::data_bytes() const {
  std::uint64_t total = 0;
  for (const Part& part : parts)
    for (const File& file : part.files) total += file.data_bytes.value_or(file.bytes);
  return total;
}

std::string checksum_of_manifest(const Manifest& manifest) { return checksum_of(to_json(manifest)); }

std::string to_json(const Manifest& manifest) {
  json value = to_value(manifest);
  value["checksum"] = checksum_of(canonical(value));
  return canonical(value);
}

Result<Manifest> manifest_from_json(std::string_view text) {
  if (text.size() > longest_manifest) return fail(Errc::corrupt, "manifest: longer than {} bytes", longest_manifest);
  json value;
  try {
    // Printing is recursive in nlohmann, and the checksum needs it: the depth must not be somebody else's choice.
    value = json::parse(text, [](int depth, json::parse_event_t, json&) {
      if (depth > deepest) throw std::length_error(fmt::format("nested deeper than {}", deepest));
      return true;
    });
  } catch (const json::parse_error& error) {
    return fail(Errc::corrupt, "manifest: not JSON at byte {} of {}", error.byte, text.size());
  } catch (const std::exception& error) {
    return fail(Errc::corrupt, "manifest: not JSON: {}", error.what());
  }
  return read_manifest(value);
}

}  // namespace yado::image
