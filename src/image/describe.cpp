#include "image/describe.hpp"

#include <algorithm>

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "image/chain.hpp"
#include "image/working_set.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

using nlohmann::json;

std::uint64_t disk_bytes(const std::filesystem::path& file) {
  struct stat status {};
  return ::lstat(file.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512 : 0;
}

/// What the index of a part of pages says. A part that cannot be opened says why instead.
json pages_json(const Held& held, const Part& part) {
  const auto log = held.whole ? PagePart::Log::here : PagePart::Log::elsewhere;
  const auto opened = PagePart::open(held.directory / part.name, log);
  if (!opened) return json{{"error", opened.error().text()}};
  const PageIndex& index = opened->index();
  std::uint64_t zeros = 0;
  for (std::uint64_t i = 0; i < index.records(); ++i) zeros += index.at(i).zero();
  json pages{{"guest_pages", index.guest_pages()}, {"owned_pages", count_of(index.description().owned)},
             {"records", index.records()},         {"zeros", zeros},
             {"log_slots", index.log_slots()},     {"cut", index.description().cut.hex()}};
  if (!index.self_contained()) pages["base_cut"] = index.description().base_cut.hex();
  if (const auto set = read_working_set(held.directory / part.name)) pages["working_set"] = set->pages.size();
  return pages;
}

json parts_json(const Held& held) {
  json parts = json::array();
  for (const Part& part : held.manifest.parts) {
    json one{{"name", part.name}, {"type", image::name_of(part.type)}, {"files", part.files.size()}};
    std::uint64_t bytes = 0, on_disk = 0;
    for (const File& file : part.files) {
      bytes += file.bytes;
      on_disk += disk_bytes(held.directory / part.name / file.path);
    }
    one["bytes"] = bytes;
    one["disk_bytes"] = on_disk;
    if (part.type == PartType::pages &&
        std::ranges::find(part.files, "pages.index", &File::path) != part.files.end())
      one["pages"] = pages_json(held, part);
    parts.push_back(std::move(one));
  }
  return parts;
}

json member_json(const Store& store, const Member& member) {
  json one{{"id", member.id.str()}, {"host", member.host.str()}, {"here", "no"}};
  if (const auto held = store.find(member.id)) {
    one["here"] = held->whole ? "image" : "indices";
    one["parts"] = parts_json(*held);
  }
  return one;
}

/// Of a share, <main image>.<host>, whose main image lies elsewhere: the same host's shares of its bases, newest first, as far as they are here.
std::vector<Manifest> shares_below(const Store& store, const Manifest& share) {
  std::vector<Manifest> chain{share};
  while (chain.back().base && chain.back().member_of && chain.size() < PageChain::max_images) {
    const Manifest& above = chain.back();
    auto below = store.read(ImageId(above.base->str() + above.id.str().substr(above.member_of->str().size())));
    if (!below || below->member_of != above.base) break;
    chain.push_back(std::move(*below));
  }
  return chain;
}

/// Oldest first. The last word on a base that is not here.
json chain_json(const Store& store, const Manifest& manifest) {
  json chain = json::array();
  const auto all_bases = bases(store, manifest.id);
  if (!all_bases) {
    const auto shares = shares_below(store, manifest);
    if (shares.back().base) chain.push_back(json{{"id", shares.back().base->str()}, {"here", false}});
    for (auto share = shares.rbegin(); share != shares.rend(); ++share) chain.push_back(json{{"id", share->id.str()}, {"here", true}});
    return chain;
  }
  if (const auto& oldest = all_bases->back().manifest; oldest.base)
    chain.push_back(json{{"id", oldest.base->str()}, {"here", false}});
  for (auto held = all_bases->rbegin(); held != all_bases->rend(); ++held)
    chain.push_back(json{{"id", held->manifest.id.str()}, {"here", held->whole}});
  return chain;
}

/// The image, its members, and what they are deltas of, as far as they are here as images.
std::vector<Manifest> what_to_verify(const Store& store, const Held& held) {
  std::vector<Manifest> all;
  const auto add = [&](const ImageId& id) {
    if (auto manifest = store.read(id))
      if (std::ranges::find(all, id, &Manifest::id) == all.end()) all.push_back(std::move(*manifest));
  };
  add(held.manifest.id);
  const auto all_bases = bases(store, held.manifest.id);
  if (!all_bases) {
    for (const Manifest& share : shares_below(store, held.manifest)) add(share.id);
    return all;
  }
  for (const Held& base : *all_bases) {
    add(base.manifest.id);
    for (const Member& member : base.manifest.members) add(member.id);
  }
  return all;
}

}  // namespace

std::string describe(const Store& store, const Held& held) {
  const Manifest& manifest = held.manifest;
  json all{{"id", manifest.id.str()},
           {"workload", manifest.workload.str()},
           {"created_wall_ms", manifest.created_wall_ms},
           {"spec_hash", manifest.spec_hash},
           {"here", held.whole ? "image" : "indices"},
           {"bytes", manifest.bytes()},
           {"chain", chain_json(store, manifest)},
           {"parts", parts_json(held)},
           {"members", json::array()}};
  if (manifest.base) all["base"] = manifest.base->str();
  if (manifest.member_of) all["member_of"] = manifest.member_of->str();
  if (manifest.stands_for) all["merged"] = true;
  if (const auto bytes = os::read_text(store.use_file(manifest.id)))
    if (const auto used = working_set_from_bytes(*bytes)) all["used_pages"] = used->pages.size();
  for (const Member& member : manifest.members) all["members"].push_back(member_json(store, member));
  return all.dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<Verified> verify_with_all(const Store& store, const Held& held, const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  const std::vector<Manifest> all = what_to_verify(store, held);
  Verified verified{.images = all.size()};
  for (const Manifest& manifest : all) verified.bytes += manifest.data_bytes();
  std::uint64_t done = 0;
  const auto more = [&](std::uint64_t bytes) {
    done += bytes;
    if (progress) progress(done, verified.bytes);
  };
  for (const Manifest& manifest : all) YADO_TRY(store.verify(manifest.id, more), "verify");
  return verified;
}

}  // namespace yado::image
