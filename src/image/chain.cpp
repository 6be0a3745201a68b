#include "image/chain.hpp"

#include <algorithm>
#include <ranges>
#include <set>

#include "image/pass.hpp"

namespace yado::image {
namespace {

/// The main image's, and of a member what it is called among the others.
Result<Held> find_main(const Store& store, const ImageId& id) {
  YADO_TAKE(Held held, store.find(id));
  if (!held.manifest.member_of) return held;
  auto main = store.find(*held.manifest.member_of);
  if (main) return main;
  return context(main.error(), fmt::format("image {}: is a member of {}", id, *held.manifest.member_of));
}

Result<Held> find_member(const Store& store, const ImageId& main, const Member& member) {
  auto held = store.find(member.id);
  if (!held && held.error().code == Errc::not_found)
    return fail(Errc::not_found, "image {}: its member {} is not here: host {} has it", main, member.id, member.host);
  if (!held) return held;
  const std::string sum = held->manifest.stands_for.value_or(checksum_of_manifest(held->manifest));
  if (sum != member.xxh128 || held->manifest.member_of != main)
    return fail(Errc::corrupt, "image {}: {} is not the member that it names (another manifest)", main, member.id);
  return held;
}

Status open_parts(const Held& held, std::vector<PagePart>& parts) {
  for (const Part& part : held.manifest.parts) {
    if (part.type != PartType::pages) continue;
    YADO_ASSIGN(PagePart opened,
                PagePart::open(held.directory / part.name, held.whole ? PagePart::Log::here : PagePart::Log::elsewhere,
                               fmt::format("{}/{}", held.manifest.id, part.name)),
                fmt::format("image {}", held.manifest.id));
    parts.push_back(std::move(opened));
  }
  return {};
}

/// The main image and its members.
Result<std::vector<Held>> set_of(const Store& store, const Held& main) {
  std::vector<Held> set{main};
  for (const Member& member : main.manifest.members) {
    YADO_TAKE(Held held, find_member(store, main.manifest.id, member));
    set.push_back(std::move(held));
  }
  return set;
}

Result<std::vector<PagePart>> parts_of_set(const std::vector<Held>& set) {
  std::vector<PagePart> parts;
  for (const Held& held : set) YADO_PASS(open_parts(held, parts));
  if (parts.empty()) return fail(Errc::invalid_argument, "image {}: has no pages", set.front().manifest.id);
  return parts;
}

bool self_contained(const std::vector<PagePart>& parts) {
  return std::ranges::all_of(parts, [](const PagePart& part) { return part.index().self_contained(); });
}

// `seen`: newest first.
Result<Held> find_base(const Store& store, const Manifest& delta, const std::vector<ImageId>& seen) {
  if (!delta.base) return fail(Errc::corrupt, "image {}: has pages of a delta, and names no base", delta.id);
  if (std::ranges::find(seen, *delta.base) != seen.end())
    return fail(Errc::corrupt, "image {}: its base {} is a delta of it", delta.id, *delta.base);
  if (seen.size() == PageChain::max_images)
    return fail(Errc::invalid_argument, "image {}: a chain of more than {} images", seen.front(),
                PageChain::max_images);
  auto base = store.find(*delta.base);
  if (!base && base.error().code == Errc::not_found)
    return fail(Errc::not_found, "image {}: its base {} is not here", delta.id, *delta.base);
  return base;
}

struct Loaded {
  std::vector<std::vector<Held>> sets;
  std::vector<std::vector<PagePart>> parts;
};

Result<Loaded> load_images(const Store& store, const ImageId& id) {
  YADO_TAKE(Held main, find_main(store, id));
  Loaded images;
  for (std::vector<ImageId> seen;;) {
    seen.push_back(main.manifest.id);
    YADO_TAKE(std::vector<Held> set, set_of(store, main));
    YADO_TAKE(std::vector<PagePart> parts, parts_of_set(set));
    images.sets.push_back(std::move(set));
    images.parts.push_back(std::move(parts));
    if (self_contained(images.parts.back())) break;
    YADO_TAKE(main, find_base(store, main.manifest, seen));
  }
  std::ranges::reverse(images.sets);
  std::ranges::reverse(images.parts);
  return images;
}

// Writes the parts of pages of `old` anew and takes over the others.
Status fill(const Draft& draft, const Held& old, const PageChain& chain, const MergeChain& how) {
  for (const Part& part : old.manifest.parts) {
    if (part.type != PartType::pages) continue;
    const std::filesystem::path from = old.directory / part.name;
    YADO_TAKE(const PagePart before, PagePart::open(from));
    YADO_TAKE(const std::filesystem::path to, draft.part_directory(part.name));
    YADO_PASS(merge(chain, to, {.owned = before.index().description().owned, .stop = how.stop, .elsewhere = how.elsewhere, .copied = how.copied}));
    for (const File& file : part.files) {
      if (std::filesystem::exists(to / file.path)) continue;  // its log and its index
      std::error_code error;
      std::filesystem::create_directories((to / file.path).parent_path(), error);
      if (!error) std::filesystem::create_hard_link(from / file.path, to / file.path, error);
      if (error) return fail_errno(error.value(), fmt::format("link {}/{}", part.name, file.path));
    }
  }
  return {};
}

// True when after merging `id` no part of its set is a delta any more.
bool set_is_merged(const PageChain& chain, const ImageId& id) {
  const std::string own = fmt::format("{}/", id);
  return std::ranges::all_of(chain.parts(), [&](const PagePart* part) {
    return part->index().description().cut != chain.cut() || part->index().self_contained() ||
           part->name().starts_with(own);
  });
}

}  // namespace

Result<PageChain> load_chain(const Store& store, const ImageId& id) {
  YADO_TAKE(Loaded images, load_images(store, id));
  auto chain = PageChain::make(std::move(images.parts));
  if (!chain) return context(chain.error(), fmt::format("image {}", id));
  return chain;
}

Result<std::vector<std::vector<Held>>> sets_of_chain(const Store& store, const ImageId& id) {
  YADO_TAKE(Loaded images, load_images(store, id));
  return std::move(images.sets);
}

Result<std::vector<Held>> bases(const Store& store, const ImageId& id) {
  YADO_TAKE(Held main, find_main(store, id));
  std::vector<Held> chain;
  std::vector<ImageId> seen;
  for (;;) {
    seen.push_back(main.manifest.id);
    chain.push_back(std::move(main));
    if (!chain.back().manifest.base) return chain;
    auto base = find_base(store, chain.back().manifest, seen);
    if (!base && base.error().code == Errc::not_found) return chain;
    if (!base) return std::unexpected(std::move(base.error()));
    main = std::move(*base);
  }
}

namespace {

bool belongs_to(const Manifest& image, const ImageId& main, const Manifest* of) {
  if (image.member_of == main) return true;
  return of && std::ranges::find(of->members, image.id, &Member::id) != of->members.end();
}

void order(const std::vector<Manifest>& images, const ImageId& id, std::set<ImageId>& seen, std::vector<ImageId>& out) {
  if (!seen.insert(id).second) return;
  const auto itself = std::ranges::find(images, id, &Manifest::id);
  for (const Manifest& image : images)
    if (image.base == id) order(images, image.member_of.value_or(image.id), seen, out);  // its main may be elsewhere
  out.push_back(id);
  for (const Manifest& image : images)
    if (belongs_to(image, id, itself == images.end() ? nullptr : &*itself) && seen.insert(image.id).second)
      out.push_back(image.id);
}

}  // namespace

std::vector<ImageId> removal_order(const std::vector<Manifest>& images, const ImageId& id) {
  std::set<ImageId> seen;
  std::vector<ImageId> out;
  const auto itself = std::ranges::find(images, id, &Manifest::id);
  order(images, itself == images.end() ? id : itself->member_of.value_or(id), seen, out);
  return out;
}

Status remove_set(const Store& store, const ImageId& id, Deltas deltas) {
  const std::vector<Manifest> images = store.list();
  const auto itself = std::ranges::find(images, id, &Manifest::id);
  if (itself != images.end() && itself->member_of) return store.remove(id);
  const std::vector<ImageId> all = removal_order(images, id);
  if (deltas == Deltas::refuse && all.front() != id)
    return fail(Errc::conflict, "image {}: {} is a delta of it, or of a delta: remove or merge that first", id,
                all.front());
  for (const ImageId& each : all) YADO_PASS(store.remove(each, Store::Dependents::ignore));
  return {};
}

Status complete_disks(const Store& store, const ImageId& id, Draft& draft, Manifest& manifest) {
  const auto delta = std::ranges::find(manifest.parts, PartType::disk_delta, &Part::type);
  if (delta == manifest.parts.end()) return {};
  YADO_TAKE(const std::vector<Held> chain, bases(store, id));
  for (const Held& base : chain | std::views::drop(1)) {
    const auto below = std::ranges::find(base.manifest.parts, delta->name, &Part::name);
    if (below == base.manifest.parts.end()) break;
    if (!base.whole) return fail(Errc::unavailable, "image {}: the disks below those of {} lie on another host", base.manifest.id, id);
    YADO_PASS(draft.link_part(base.directory / below->name, *below));
    delta->files.insert(delta->files.end(), below->files.begin(), below->files.end());
    if (below->type != PartType::disk) continue;
    std::ranges::sort(delta->files, {}, &File::path);
    delta->type = PartType::disk;
    return {};
  }
  return fail(Errc::corrupt, "image {}: its disks lie on those of a base that has none", id);
}

Result<Manifest> merge_chain(const Store& store, const ImageId& id, const MergeChain& how) {
  const std::string doing = fmt::format("merge image {}", id);
  YADO_ASSIGN(const Held old, store.find(id), doing);
  if (!old.whole) return fail(Errc::invalid_argument, "{}: it lies on another host", doing);
  YADO_ASSIGN(const PageChain chain, load_chain(store, id), doing);
  std::vector<PagePart> own;
  YADO_TRY(open_parts(old, own), doing);
  const bool delta = !self_contained(own);
  Manifest manifest = old.manifest;
  if (set_is_merged(chain, id)) manifest.base.reset();
  if (!delta && manifest.base == old.manifest.base) return manifest;

  manifest.stands_for = old.manifest.stands_for.value_or(checksum_of_manifest(old.manifest));
  YADO_ASSIGN(Draft draft, store.begin_replacement(id), doing);
  for (const Part& part : manifest.parts)
    if (!delta || part.type != PartType::pages) YADO_TRY(draft.link_part(old.directory / part.name, part), doing);
  if (delta) YADO_TRY(fill(draft, old, chain, how), doing);
  if (delta) YADO_TRY(complete_disks(store, id, draft, manifest), doing);
  YADO_ASSIGN(manifest, draft.commit(std::move(manifest)), doing);
  return manifest;
}

Status forget_indices(const Store& store) {
  std::vector<ImageId> kept = store.kept();  // before the images: who keeps indices has the image first
  for (const Manifest& image : store.list())
    for (const Member& member : image.members) std::erase(kept, member.id);
  for (const ImageId& id : kept) YADO_PASS(store.forget_indices(id));
  return {};
}

}  // namespace yado::image
