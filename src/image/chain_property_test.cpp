// Any history of checkpoints, over any partition of the guest into parts, is the same as a plain map. RapidCheck makes
// the histories, and makes those that fail small; it prints how to repeat one (RC_PARAMS).

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "image/chain.hpp"
#include "image/flat_memory.hpp"
#include "image/page_testing.hpp"
#include "image/temporary_directory.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;

/// Where fsync costs nothing: these tests make thousands of files.
const fs::path memory_disk = "/dev/shm";

/// One checkpoint of a guest of `owner.size()` pages.
struct Step {
  std::vector<std::size_t> owner;     ///< [page] -> part
  std::vector<std::uint64_t> memory;  ///< [page] -> contents, for page_of
  std::vector<bool> changed;          ///< [page], since the step before
  std::vector<bool> merged;           ///< [part]: a record of every page, as if that host had merged its share
};

std::ostream& operator<<(std::ostream& out, const Step& step) {
  const auto list = [&](const char* name, const auto& values) {
    out << name;
    for (const auto value : values) out << ' ' << value;
  };
  list("\n  owner ", step.owner), list("\n  memory ", step.memory), list("\n  changed ", step.changed);
  list("\n  merged ", step.merged);
  return out;
}

constexpr std::size_t parts = 3;

/// Few contents, so that zeros and equal pages are common.
rc::Gen<std::uint64_t> contents() { return rc::gen::inRange<std::uint64_t>(0, 6); }

std::vector<Step> any_history(std::size_t pages, std::size_t longest) {
  const std::size_t length = *rc::gen::inRange<std::size_t>(1, longest + 1);
  std::vector<Step> history;
  std::vector<std::uint64_t> memory(pages, 0);
  for (std::size_t i = 0; i < length; ++i) {
    Step step;
    step.owner = *rc::gen::container<std::vector<std::size_t>>(pages, rc::gen::inRange<std::size_t>(0, parts));
    step.changed = *rc::gen::container<std::vector<bool>>(pages, rc::gen::arbitrary<bool>());
    step.merged = *rc::gen::container<std::vector<bool>>(parts, rc::gen::arbitrary<bool>());
    const auto written = *rc::gen::container<std::vector<std::uint64_t>>(pages, contents());
    for (std::size_t page = 0; page < pages; ++page)
      if (step.changed[page]) memory[page] = written[page];
    step.memory = memory;
    history.push_back(std::move(step));
  }
  return history;
}

PageSet owned_by(const Step& step, std::size_t part) {
  std::vector<PageRange> ranges;
  for (std::size_t page = 0; page < step.owner.size(); ++page)
    if (step.owner[page] == part) ranges.push_back({PageNumber{page}, 1});
  return normalised(ranges);
}

void must(const Status& status) {
  if (!status) RC_FAIL(status.error().text());
}
template <class T>
T must(Result<T> result) {
  if (!result) RC_FAIL(result.error().text());
  return std::move(*result);
}

/// Writes the share of `part` of the `number`-th step (from 1 on), older versions of its pages among it.
void write_share(const fs::path& directory, const Step& step, int number, std::size_t part) {
  const bool self_contained = number == 1 || step.merged[part];
  PageWriter writer = must(PageWriter::create(directory, {.guest_pages = step.owner.size(),
                                                          .cut = cut_number(number),
                                                          .base_cut = self_contained ? CutId{} : cut_number(number - 1),
                                                          .caching = Caching::page_cache}));
  PageAppender one = writer.appender(), other = writer.appender();
  for (std::size_t page = 0; page < step.owner.size(); ++page) {
    const bool mine = step.owner[page] == part;
    if (!self_contained && !step.changed[page]) continue;
    if (!mine || page % 3 == 0) must(other.put(PageNumber{page}, page_of(77), 1_round));  // comes first, or moved away
    if (mine) must(one.put(PageNumber{page}, page_of(step.memory[page]), 2_round));
    if (mine && page % 5 == 0) must(other.put(PageNumber{page}, page_of(78), 0_round));  // comes late
  }
  must(one.flush());
  must(other.flush());
  must(writer.finish(owned_by(step, part)));
}

void check_memory(const PageChain& chain, const std::vector<std::uint64_t>& memory) {
  RC_ASSERT(chain.guest_pages() == memory.size());
  Page page;
  for (std::size_t number = 0; number < memory.size(); ++number) {
    must(chain.read(PageNumber{number}, page));
    RC_ASSERT(page == page_of(memory[number]));
  }
  std::size_t seen = 0;
  for (const PagePart* part : chain.parts())
    must(part->scan(chain.live(*part), [&](PageNumber number, std::optional<PageContents> contents) {
      const Page wanted = page_of(memory[value_of(number)]);
      const bool same = contents ? std::ranges::equal(*contents, wanted) : is_zero(wanted);
      RC_ASSERT(same);
      ++seen;
      return Status();
    }));
  RC_ASSERT(seen == memory.size());
}

PageChain chain_of(const std::vector<std::vector<fs::path>>& images) {
  std::vector<std::vector<PagePart>> list;
  for (const auto& directories : images) {
    list.emplace_back();
    for (const fs::path& directory : directories) list.back().push_back(must(PagePart::open(directory)));
  }
  return must(PageChain::make(std::move(list)));
}

RC_GTEST_PROP(ImageChainPropertyTest, AnyHistoryIsAPlainMap, ()) {
  const TemporaryDirectory directory(memory_disk);
  const std::size_t pages = *rc::gen::inRange<std::size_t>(1, 40);
  const std::vector<Step> history = any_history(pages, 5);
  RC_LOG() << rc::toString(history);
  std::vector<std::vector<fs::path>> images;
  for (std::size_t i = 0; i < history.size(); ++i) {
    images.emplace_back();
    for (std::size_t part = 0; part < parts; ++part) {
      images.back().push_back(new_part(directory.path(), fmt::format("{}/p{}", i, part)));
      write_share(images.back().back(), history[i], static_cast<int>(i + 1), part);
    }
    check_memory(chain_of(images), history[i].memory);
  }
  const PageChain chain = chain_of(images);

  // Merged into another partition it is the same, and so is its flat file.
  const auto owner = *rc::gen::container<std::vector<std::size_t>>(pages, rc::gen::inRange<std::size_t>(0, parts));
  std::vector<fs::path> merged;
  for (std::size_t part = 0; part < parts; ++part) {
    merged.push_back(new_part(directory.path(), fmt::format("merged/p{}", part)));
    must(merge(chain, merged.back(), {.owned = owned_by({.owner = owner}, part), .caching = Caching::page_cache}));
  }
  check_memory(chain_of({merged}), history.back().memory);
  must(export_flat(chain, directory.path() / "flat"));
  const std::string flat = read_file(directory.path() / "flat");
  RC_ASSERT(flat.size() == pages * page_bytes);
  for (std::size_t page = 0; page < pages; ++page)
    RC_ASSERT(std::memcmp(flat.data() + page * page_bytes, page_of(history.back().memory[page]).data(), page_bytes) ==
              0);
}

/// The store and what every image in it must be.
struct Cluster {
  Store store;
  std::map<ImageId, std::vector<std::uint64_t>> memory;  ///< of main images
  std::vector<ImageId> newest;                           ///< the chain that goes on, newest last

  /// A set: part 0 in the main image, each other in a member.
  void checkpoint(const Step& step, int number, bool full) {
    const ImageId id(fmt::format("i{}", number));
    Step written = step;
    if (full) written.merged.assign(parts, true);
    std::vector<Member> members;
    for (std::size_t part = parts; part-- > 0;) {
      const ImageId own = part == 0 ? id : ImageId(fmt::format("{}.h{}", id, part));
      Draft draft = must(store.begin(own));
      write_share(must(draft.part_directory("memory")), written, number, part);
      Manifest manifest{.id = own, .workload = WorkloadId("vm"), .created_wall_ms = number};
      manifest.parts = {{PartType::pages, "memory", {}}};
      if (!full) manifest.base = newest.back();
      if (part == 0)
        manifest.members = members;
      else
        manifest.member_of = id;
      manifest = must(draft.commit(std::move(manifest)));
      members.push_back({own, HostId(fmt::format("h{}", part)), checksum_of_manifest(manifest)});
    }
    if (full) newest.clear();
    newest.push_back(id);
    memory[id] = step.memory;
  }

  /// One that its cut says goes on from the cut before it; so a removal of the newest ends the chain.
  void forget(const ImageId& id) {
    memory.erase(id);
    if (const auto at = std::ranges::find(newest, id); at != newest.end())
      at + 1 == newest.end() ? newest.clear() : void(newest.erase(at));
  }
};

RC_GTEST_PROP(ImageChainPropertyTest, MergingAndRemovingNeverChangeWhatAnImageIs, ()) {
  const TemporaryDirectory directory(memory_disk);
  Cluster cluster{.store = must(Store::open(directory.path() / "store"))};
  const std::size_t pages = *rc::gen::inRange<std::size_t>(1, 12);
  const std::vector<Step> history = any_history(pages, 6);
  for (std::size_t i = 0; i < history.size(); ++i) {
    const int number = static_cast<int>(i + 1);
    cluster.checkpoint(history[i], number, cluster.newest.empty() || *rc::gen::inRange(0, 5) == 0);

    const std::vector<Manifest> images = cluster.store.list();
    const ImageId any = (*rc::gen::elementOf(images)).id;
    switch (*rc::gen::inRange(0, 4)) {
      case 0:
        must(merge_chain(cluster.store, any, {}));
        break;
      case 1: {
        const auto& of_set =
            images[static_cast<std::size_t>(std::ranges::find(images, any, &Manifest::id) - images.begin())];
        const ImageId main = of_set.member_of.value_or(any);
        const Status removed = remove_set(cluster.store, main);
        if (removed)
          cluster.forget(main);
        else
          RC_ASSERT(removed.error().code == Errc::conflict);
        break;
      }
      case 2: {  // what is needed is not removed by itself
        const Status removed = cluster.store.remove(any);
        RC_ASSERT(removed.has_value() || removed.error().code == Errc::conflict);
        if (removed) {
          RC_ASSERT(cluster.memory.contains(any));  // a member never is
          must(remove_set(cluster.store, any));     // what it leaves
          cluster.forget(any);
        }
        break;
      }
      default:
        break;
    }
    for (const auto& [id, memory] : cluster.memory) {
      const auto chain = load_chain(cluster.store, id);
      if (!chain) RC_FAIL(chain.error().text());
      check_memory(*chain, memory);
    }
    RC_ASSERT(cluster.store.list().size() == parts * cluster.memory.size());
  }
}

/// Images i0 … in[any order], each a delta of, or a member of a set of, an earlier one.
std::vector<Manifest> any_images() {
  const std::size_t count = *rc::gen::inRange<std::size_t>(1, 12);
  std::vector<Manifest> images;
  for (std::size_t i = 0; i < count; ++i) {
    Manifest image{.id = ImageId(fmt::format("i{}", i))};
    if (i > 0) {
      Manifest& other = images[*rc::gen::inRange<std::size_t>(0, i)];
      const int kind = *rc::gen::inRange(0, 4);
      if (kind == 1 && !other.member_of) image.base = other.id;
      if (kind == 2 && !other.member_of) {
        image.member_of = other.id;
        image.base = other.base;
        other.members.push_back({image.id, HostId("h"), ""});
      }
    }
    images.push_back(std::move(image));
  }
  return images;
}

RC_GTEST_PROP(ImageChainPropertyTest, NothingThatStaysNeedsWhatIsRemovedBeforeIt, ()) {
  std::vector<Manifest> images = any_images();
  const ImageId id = (*rc::gen::elementOf(images)).id;
  const std::vector<ImageId> order = removal_order(images, id);
  RC_ASSERT(std::ranges::find(order, id) != order.end());
  RC_ASSERT(std::set<ImageId>(order.begin(), order.end()).size() == order.size());
  for (const ImageId& next : order) {
    const auto gone = std::ranges::find(images, next, &Manifest::id);
    RC_ASSERT(gone != images.end());
    const Manifest removed = *gone;
    images.erase(gone);
    for (const Manifest& image : images) {
      RC_ASSERT(image.base != next);
      RC_ASSERT(std::ranges::find(image.members, next, &Member::id) == image.members.end());
      RC_ASSERT(!removed.member_of || image.base != removed.member_of);
    }
  }
}

}  // namespace
}  // namespace yado::image
