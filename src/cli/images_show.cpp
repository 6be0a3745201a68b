// yado images show: one image of a store, with what it is a delta of and what it has on other hosts.

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/command.hpp"
#include "cli/images.hpp"
#include "cli/table.hpp"
#include "image/chain.hpp"
#include "image/working_set.hpp"
#include "os/clock.hpp"

namespace yado::cli {
namespace {

using image::Held;
using nlohmann::json;

std::uint64_t disk_bytes(const std::filesystem::path& file) {
  struct stat status {};
  return ::lstat(file.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512 : 0;
}

/// What the index of a part of pages says. A part that cannot be opened says why instead.
json pages_json(const Held& held, const image::Part& part) {
  const auto log = held.whole ? image::PagePart::Log::here : image::PagePart::Log::elsewhere;
  const auto opened = image::PagePart::open(held.directory / part.name, log);
  if (!opened) return json{{"error", opened.error().text()}};
  const image::PageIndex& index = opened->index();
  std::uint64_t zeros = 0;
  for (std::uint64_t i = 0; i < index.records(); ++i) zeros += index.at(i).zero();
  json pages{{"guest_pages", index.guest_pages()}, {"owned_pages", image::count_of(index.description().owned)},
             {"records", index.records()},         {"zeros", zeros},
             {"log_slots", index.log_slots()},     {"cut", index.description().cut.hex()}};
  if (!index.self_contained()) pages["base_cut"] = index.description().base_cut.hex();
  if (const auto set = image::read_working_set(held.directory / part.name)) pages["working_set"] = set->pages.size();
  return pages;
}

json parts_json(const Held& held) {
  json parts = json::array();
  for (const image::Part& part : held.manifest.parts) {
    json one{{"name", part.name}, {"type", image::name_of(part.type)}, {"files", part.files.size()}};
    std::uint64_t bytes = 0, on_disk = 0;
    for (const image::File& file : part.files) {
      bytes += file.bytes;
      on_disk += disk_bytes(held.directory / part.name / file.path);
    }
    one["bytes"] = bytes;
    one["disk_bytes"] = on_disk;
    if (part.type == image::PartType::pages &&
        std::ranges::find(part.files, "pages.index", &image::File::path) != part.files.end())
      one["pages"] = pages_json(held, part);
    parts.push_back(std::move(one));
  }
  return parts;
}

json member_json(const image::Store& store, const image::Member& member) {
  json one{{"id", member.id.str()}, {"host", member.host.str()}, {"here", "no"}};
  if (const auto held = store.find(member.id)) {
    one["here"] = held->whole ? "image" : "indices";
    one["parts"] = parts_json(*held);
  }
  return one;
}

/// Of a share, <main image>.<host>, whose main image lies elsewhere: the same host's shares of its bases, newest first, as far as they are here.
std::vector<image::Manifest> shares_below(const image::Store& store, const image::Manifest& share) {
  std::vector<image::Manifest> chain{share};
  while (chain.back().base && chain.back().member_of && chain.size() < image::PageChain::max_images) {
    const image::Manifest& above = chain.back();
    auto below = store.read(ImageId(above.base->str() + above.id.str().substr(above.member_of->str().size())));
    if (!below || below->member_of != above.base) break;
    chain.push_back(std::move(*below));
  }
  return chain;
}

/// Oldest first. The last word on a base that is not here.
json chain_json(const image::Store& store, const image::Manifest& manifest) {
  json chain = json::array();
  const auto bases = image::bases(store, manifest.id);
  if (!bases) {
    const auto shares = shares_below(store, manifest);
    if (shares.back().base) chain.push_back(json{{"id", shares.back().base->str()}, {"here", false}});
    for (auto share = shares.rbegin(); share != shares.rend(); ++share) chain.push_back(json{{"id", share->id.str()}, {"here", true}});
    return chain;
  }
  if (const auto& oldest = bases->back().manifest; oldest.base)
    chain.push_back(json{{"id", oldest.base->str()}, {"here", false}});
  for (auto held = bases->rbegin(); held != bases->rend(); ++held)
    chain.push_back(json{{"id", held->manifest.id.str()}, {"here", held->whole}});
  return chain;
}

json describe(const image::Store& store, const Held& held) {
  const image::Manifest& manifest = held.manifest;
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
  for (const image::Member& member : manifest.members) all["members"].push_back(member_json(store, member));
  return all;
}

std::string count_or_dash(const json& pages, const char* key) {
  return pages.contains(key) ? fmt::format("{}", pages[key].get<std::uint64_t>()) : "";
}

void add_rows(std::vector<std::vector<std::string>>& rows, const json& parts, const std::string& id,
              const std::string& host) {
  for (const json& part : parts) {
    const json pages = part.value("pages", json::object());
    std::string kind = part.value("type", "");
    if (pages.contains("error"))
      kind += ", damaged";
    else if (!pages.empty())
      kind += pages.contains("base_cut") ? ", delta" : ", whole";
    rows.push_back({host, id, part.value("name", ""), kind, format_bytes(part.value("bytes", 0ull)),
                    format_bytes(part.value("disk_bytes", 0ull)), count_or_dash(pages, "owned_pages"),
                    count_or_dash(pages, "records"), count_or_dash(pages, "zeros"),
                    pages.empty()                   ? ""
                    : pages.contains("working_set") ? "yes"
                                                    : "no"});
  }
}

void print(const json& all) {
  std::vector<std::string> chain;
  for (const json& one : all["chain"])
    chain.push_back(one.value("id", "") + (one.value("here", false) ? "" : " (not here)"));
  fmt::print("image     {}{}\n", all.value("id", ""),
             all.value("here", "") == "indices" ? " (only its indices are here)" : "");
  fmt::print("workload  {}\n", all.value("workload", ""));
  fmt::print("age       {}\n",
             format_age(std::max<std::int64_t>(0, os::wall_ms() - all.value("created_wall_ms", std::int64_t{0}))));
  fmt::print("chain     {}{}\n", fmt::join(chain, " <- "), all.value("merged", false) ? " (merged)" : "");
  if (all.contains("member_of")) fmt::print("member of {}\n", all.value("member_of", ""));
  if (all.contains("verified"))
    fmt::print("verified  every checksum of {} in {} image(s)\n", format_bytes(all["verified"].value("bytes", 0ull)),
               all["verified"].value("images", 0));
  fmt::print("\n");
  std::vector<std::vector<std::string>> rows{
      {"HOST", "IMAGE", "PART", "TYPE", "LENGTH", "ON DISK", "PAGES", "RECORDS", "ZEROS", "WORKING SET"}};
  add_rows(rows, all["parts"], all.value("id", ""), "here");
  for (const json& member : all["members"]) {
    const std::string here = member.value("here", "");
    const std::string host = member.value("host", "") + (here == "image"     ? " (here)"
                                                         : here == "indices" ? " (indices)"
                                                                             : "");
    if (here == "no")
      rows.push_back({host, member.value("id", ""), "", "", "", "", "", "", "", ""});
    else
      add_rows(rows, member["parts"], member.value("id", ""), host);
  }
  fmt::print("{}", format_table(rows));
}

/// The image, its members, and what they are deltas of, as far as they are here as images.
std::vector<image::Manifest> what_to_verify(const image::Store& store, const Held& held) {
  std::vector<image::Manifest> all;
  const auto add = [&](const ImageId& id) {
    if (auto manifest = store.read(id))
      if (std::ranges::find(all, id, &image::Manifest::id) == all.end()) all.push_back(std::move(*manifest));
  };
  add(held.manifest.id);
  const auto bases = image::bases(store, held.manifest.id);
  if (!bases) {
    for (const image::Manifest& share : shares_below(store, held.manifest)) add(share.id);
    return all;
  }
  for (const Held& base : *bases) {
    add(base.manifest.id);
    for (const image::Member& member : base.manifest.members) add(member.id);
  }
  return all;
}

Result<json> verify(const image::Store& store, const Held& held) {
  const std::vector<image::Manifest> all = what_to_verify(store, held);
  std::uint64_t bytes = 0;
  for (const image::Manifest& manifest : all) bytes += manifest.data_bytes();
  Progress progress("verifying", bytes);
  for (const image::Manifest& manifest : all)
    YADO_TRY(store.verify(manifest.id, [&](std::uint64_t more) { progress.add(more); }), "verify");
  return json{{"images", all.size()}, {"bytes", bytes}};
}

}  // namespace

int show_image(const ImageOptions& options) {
  const auto store = image::Store::look_into(options.store);
  if (!store) return complain(store.error());
  const auto held = store->find(ImageId(options.id));
  if (!held) return complain(held.error());
  json all = describe(*store, *held);
  if (options.verify) {
    auto verified = verify(*store, *held);
    if (!verified) return complain(verified.error());
    all["verified"] = std::move(*verified);
  }
  if (options.json)
    fmt::print("{}\n", api::dump_pretty(all));
  else
    print(all);
  return Exit::ok;
}

}  // namespace yado::cli
