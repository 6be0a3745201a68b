#include "image/chain.hpp"

#include <gmock/gmock.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "image/disk.hpp"
#include "image/page_testing.hpp"
#include "image/small_disk.hpp"
#include "image/temporary_directory.hpp"
#include "image/working_set.hpp"
#include "os/file.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t guest_pages = 40;

MemoryModel numbered(std::uint64_t from, std::uint64_t to, std::uint64_t plus = 1) {
  MemoryModel model;
  for (std::uint64_t number = from; number < to; ++number) model[number] = number + plus;
  return model;
}
MemoryModel over(MemoryModel older, const MemoryModel& newer) {
  for (const auto& [number, contents] : newer) older[number] = contents;
  return older;
}

struct Wanted {
  std::string id;
  int cut = 1;
  int base_cut = 0;
  std::string base;
  PageSet owned = all_pages(guest_pages);
  MemoryModel puts;
  std::string member_of;
  std::vector<Member> members;
  int disk_layer = 0;  ///< above 0: its disk lies on that of its base
};

Result<Manifest> make(const Store& store, const Wanted& wanted) {
  const ImageId id(wanted.id);
  YADO_ASSIGN(Draft draft, store.begin(id), "begin");
  YADO_ASSIGN(const fs::path memory, draft.part_directory("memory"), "part");
  YADO_ASSIGN(PageWriter writer,
              PageWriter::create(memory, {.guest_pages = guest_pages,
                                          .cut = cut_number(wanted.cut),
                                          .base_cut = wanted.base_cut ? cut_number(wanted.base_cut) : CutId{}}),
              "writer");
  PageAppender appender = writer.appender();
  for (const auto& [number, contents] : wanted.puts)
    YADO_TRY(appender.put(PageNumber{number}, page_of(contents), 0_round), "put");
  YADO_TRY(appender.flush(), "flush");
  YADO_TRY(writer.finish(wanted.owned), "finish");
  YADO_TRY(write_working_set(memory, {guest_pages, {3_page, 1_page}}), "working set");
  Manifest manifest{.id = id,
                    .workload = WorkloadId("vm"),
                    .created_wall_ms = wanted.cut,
                    .parts = {{PartType::pages, "memory", {}}},
                    .members = wanted.members};
  if (!wanted.base.empty()) manifest.base = ImageId(wanted.base);
  if (!wanted.member_of.empty()) {
    manifest.member_of = ImageId(wanted.member_of);
  } else {
    YADO_ASSIGN(const fs::path disk, draft.part_directory("disk"), "part");
    put_file(disk / fmt::format("layers/{}", wanted.disk_layer), fmt::format("disk of {}", wanted.id));
    manifest.parts.insert(manifest.parts.begin(), {wanted.disk_layer == 0 ? PartType::disk : PartType::disk_delta, "disk", {}});
  }
  return draft.commit(std::move(manifest));
}

MemoryModel contents_of(const PageChain& chain) {
  static const std::map<std::string, std::uint64_t> numbers = [] {
    std::map<std::string, std::uint64_t> all;
    for (std::uint64_t number = 0; number < 1000; ++number) {
      const Page page = page_of(number);
      all.emplace(std::string(reinterpret_cast<const char*>(page.data()), 16), number);
    }
    return all;
  }();
  MemoryModel model;
  Page page;
  for (std::uint64_t number = 0; number < chain.guest_pages(); ++number) {
    const Status read = chain.read(PageNumber{number}, page);
    EXPECT_TRUE(read) << read.error().text();
    model[number] = numbers.at(std::string(reinterpret_cast<const char*>(page.data()), 16));
  }
  return model;
}

class ImageChainTest : public ::testing::Test {
 protected:
  explicit ImageChainTest(const fs::path& parent = fs::temp_directory_path())
      : directory_(parent), store_(open("store")) {}

  Store open(const std::string& name) {
    auto store = Store::open(directory_.path() / name);
    EXPECT_TRUE(store) << store.error().text();
    return std::move(*store);
  }
  Manifest make(const Wanted& wanted) { return make(store_, wanted); }
  static Manifest make(const Store& store, const Wanted& wanted) {
    auto made = image::make(store, wanted);
    EXPECT_TRUE(made) << made.error().text();
    return *made;
  }

  /// a <- b <- c, each whole.
  void make_three() {
    make({.id = "a", .cut = 1, .puts = numbered(0, guest_pages)});
    make({.id = "b", .cut = 2, .base_cut = 1, .base = "a", .puts = {{3, 100}, {4, 101}, {5, 0}}});
    make({.id = "c", .cut = 3, .base_cut = 2, .base = "b", .puts = {{4, 200}, {30, 201}}});
    memory_ = over(numbered(0, guest_pages), {{3, 100}, {4, 200}, {5, 0}, {30, 201}});
  }

  /// m1 <- m2, each with a member on h2; pages 20 to 39 were h2's, page 20 moved to the main host after m1.
  void make_set(const Store& main, const Store& h2) {
    const Manifest first =
        make(h2, {.id = "m1.h2", .owned = {{20_page, 20}}, .puts = numbered(20, 40), .member_of = "m1"});
    make(main, {.id = "m1", .owned = {{0_page, 20}}, .puts = numbered(0, 20), .members = {member(first)}});
    const Manifest second = make(h2, {.id = "m2.h2",
                                      .cut = 2,
                                      .base_cut = 1,
                                      .base = "m1",
                                      .owned = {{21_page, 19}},
                                      .puts = {{25, 100}},
                                      .member_of = "m2"});
    make(main, {.id = "m2",
                .cut = 2,
                .base_cut = 1,
                .base = "m1",
                .owned = {{0_page, 21}},
                .puts = {{2, 101}},
                .members = {member(second)}});
    memory_ = over(numbered(0, guest_pages), {{25, 100}, {2, 101}});
  }
  static Member member(const Manifest& manifest) { return {manifest.id, HostId("h2"), checksum_of_manifest(manifest)}; }

  static void keep(const Store& to, const Store& from, const char* id) {
    auto manifest = from.read(ImageId(id));
    ASSERT_TRUE(manifest) << manifest.error().text();
    const std::string index = read_file(from.part_directory(manifest->id, "memory") / "pages.index");
    ASSERT_OK(to.keep_indices(*manifest, {{"memory", index}}));
  }

  void expect_memory(const Store& store, const char* id) {
    auto chain = load_chain(store, ImageId(id));
    ASSERT_TRUE(chain) << chain.error().text();
    EXPECT_EQ(contents_of(*chain), memory_);
  }
  std::string refusal(const char* id) {
    auto chain = load_chain(store_, ImageId(id));
    return chain ? "(loaded)" : chain.error().text();
  }
  static std::vector<std::string> ids(const std::vector<Manifest>& manifests) {
    std::vector<std::string> names;
    for (const Manifest& manifest : manifests) names.push_back(manifest.id.str());
    return names;
  }
  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(store_.root())) names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }
  /// As somebody who can write a manifest that fits nothing else.
  void forge(const char* id, const std::function<void(Manifest&)>& change) {
    Manifest manifest = *store_.read(ImageId(id));
    change(manifest);
    put_file(store_.root() / id / "manifest.json", to_json(manifest));
  }

  TemporaryDirectory directory_;
  Store store_;
  MemoryModel memory_;
};

TEST_F(ImageChainTest, AChainIsFollowedDownToItsSelfContainedImage) {
  make_three();
  expect_memory(store_, "c");
  auto all = bases(store_, ImageId("c"));
  ASSERT_TRUE(all) << all.error().text();
  ASSERT_EQ(all->size(), 3U);
  EXPECT_EQ((*all)[2].manifest.id, ImageId("a"));
  // An older image is still what it was.
  memory_ = over(numbered(0, guest_pages), {{3, 100}, {4, 101}, {5, 0}});
  expect_memory(store_, "b");
}

TEST_F(ImageChainTest, ABaseThatIsMissingIsNamed) {
  make_three();
  ASSERT_OK(store_.remove(ImageId("a"), Store::Dependents::ignore));
  EXPECT_EQ(refusal("c"), "image b: its base a is not here (not-found)");
  EXPECT_EQ(bases(store_, ImageId("c"))->size(), 2U);
  forge("b", [](Manifest& manifest) { manifest.base.reset(); });
  EXPECT_EQ(refusal("c"), "image b: has pages of a delta, and names no base (corrupt)");
}

TEST_F(ImageChainTest, BasesInACircleAreCorrupt) {
  make_three();
  forge("b", [](Manifest& manifest) { manifest.base = ImageId("c"); });
  EXPECT_EQ(refusal("c"), "image b: its base c is a delta of it (corrupt)");
  EXPECT_EQ(bases(store_, ImageId("c")).error().code, Errc::corrupt);
}

TEST_F(ImageChainTest, ABaseOfAnotherCutIsAConflict) {
  make_three();
  forge("c", [](Manifest& manifest) { manifest.base = ImageId("a"); });
  EXPECT_THAT(refusal("c"), HasSubstr("image c: image 2 of 2 in the chain: part c/memory: its base is the cut"));
}

TEST_F(ImageChainTest, AChainThatIsTooLongSaysSo) {
  make({.id = "i1", .cut = 1, .puts = numbered(0, guest_pages)});
  for (int cut = 2; cut <= 17; ++cut)
    make({.id = fmt::format("i{}", cut), .cut = cut, .base_cut = cut - 1, .base = fmt::format("i{}", cut - 1)});
  EXPECT_EQ(refusal("i16"), "(loaded)");
  EXPECT_EQ(refusal("i17"), "image i17: a chain of more than 16 images (invalid-argument)");
}

TEST_F(ImageChainTest, AnImageWithoutPagesHasNoChain) {
  auto draft = store_.begin(ImageId("c"));
  ASSERT_TRUE(draft);
  ASSERT_TRUE(draft->commit({.id = ImageId("c"), .workload = WorkloadId("site")}));
  EXPECT_EQ(refusal("c"), "image c: has no pages (invalid-argument)");
  EXPECT_EQ(refusal("d"), "there is no image d (not-found)");
}

// Sets.

TEST_F(ImageChainTest, ASetIsOneMemory) {
  make_set(store_, store_);
  expect_memory(store_, "m2");
  expect_memory(store_, "m2.h2");
}

TEST_F(ImageChainTest, AMemberThatIsNotHereIsNamedWithItsHost) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  EXPECT_EQ(refusal("m1"), "image m1: its member m1.h2 is not here: host h2 has it (not-found)");
  auto chain = load_chain(h2, ImageId("m1.h2"));
  ASSERT_FALSE(chain);
  EXPECT_EQ(chain.error().text(), "image m1.h2: is a member of m1: there is no image m1 (not-found)");
}

TEST_F(ImageChainTest, KeptIndicesSayWherePagesLie) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  for (const char* id : {"m1.h2", "m2.h2"}) keep(store_, h2, id);
  auto chain = load_chain(store_, ImageId("m2"));
  ASSERT_TRUE(chain) << chain.error().text();
  Page page;
  ASSERT_OK(chain->read(2_page, page));
  EXPECT_EQ(page, page_of(101));
  const PageChain::Place place = chain->find(25_page);
  EXPECT_EQ(place.part->name(), "m2.h2/memory");
  EXPECT_FALSE(place.part->has_log());
  EXPECT_EQ(chain->read(25_page, page).error().code, Errc::unavailable);
  EXPECT_EQ(ids(store_.list()), (std::vector<std::string>{"m1", "m2"})) << "what is kept is no image";
  // They survive the next start, are replaced by newer ones and go with the image.
  keep(store_, h2, "m2.h2");
  ASSERT_OK(store_.remove(ImageId("m2.h2"), Store::Dependents::ignore));
  EXPECT_THAT(entries(), ElementsAre(".indices-m1.h2", ".lock", "m1", "m2"));
}

TEST_F(ImageChainTest, IndicesThatNoImageHereNamesAreForgotten) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  for (const char* id : {"m1.h2", "m2.h2"}) keep(store_, h2, id);
  for (const char* id : {"m1", "m2"}) keep(h2, store_, id);
  ASSERT_OK(forget_indices(store_));
  EXPECT_THAT(entries(), ElementsAre(".indices-m1.h2", ".indices-m2.h2", ".lock", "m1", "m2"));
  ASSERT_OK(forget_indices(h2));
  EXPECT_THAT(h2.kept(), IsEmpty());
  EXPECT_EQ(ids(h2.list()), (std::vector<std::string>{"m1.h2", "m2.h2"}));
}

TEST_F(ImageChainTest, IndicesThatAreNotTheManifestsAreNotKept) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  const Manifest manifest = *h2.read(ImageId("m1.h2"));
  const std::string other = read_file(store_.part_directory(ImageId("m1"), "memory") / "pages.index");
  EXPECT_EQ(store_.keep_indices(manifest, {{"memory", other}}).error().code, Errc::corrupt);
  EXPECT_EQ(store_.keep_indices(manifest, {}).error().code, Errc::invalid_argument);
  EXPECT_EQ(store_.keep_indices(manifest, {{"../memory", other}}).error().code, Errc::invalid_argument);
  EXPECT_THAT(entries(), ElementsAre(".lock", "m1", "m2"));
}

TEST_F(ImageChainTest, AnotherImageOfAMembersNameIsCorrupt) {
  make_set(store_, store_);
  forge("m2.h2", [](Manifest& manifest) { manifest.created_wall_ms = 77; });
  EXPECT_EQ(refusal("m2"), "image m2: m2.h2 is not the member that it names (another manifest) (corrupt)");
}

// Removing.

TEST_F(ImageChainTest, WhatAnotherImageNeedsIsNotRemoved) {
  make_three();
  EXPECT_EQ(store_.remove(ImageId("a")).error().text(), "image a is the base of b: remove that first (conflict)");
  EXPECT_EQ(remove_set(store_, ImageId("a")).error().text(),
            "image a: c is a delta of it, or of a delta: remove or merge that first (conflict)");
  expect_memory(store_, "c");
  ASSERT_OK(remove_set(store_, ImageId("c")));
  ASSERT_OK(remove_set(store_, ImageId("a"), Deltas::remove));
  ASSERT_OK(remove_set(store_, ImageId("a")));
  EXPECT_THAT(entries(), ElementsAre(".lock"));
}

TEST_F(ImageChainTest, MembersGoWithTheirMain) {
  make_set(store_, store_);
  EXPECT_EQ(store_.remove(ImageId("m2.h2")).error().text(),
            "image m2.h2 is a member of m2: remove that first (conflict)");
  EXPECT_EQ(remove_set(store_, ImageId("m2.h2")).error().code, Errc::conflict);
  EXPECT_EQ(store_.remove(ImageId("m1.h2")).error().code, Errc::conflict);
  EXPECT_EQ(removal_order(store_.list(), ImageId("m1")),
            (std::vector{ImageId("m2"), ImageId("m2.h2"), ImageId("m1"), ImageId("m1.h2")}));
  ASSERT_OK(remove_set(store_, ImageId("m2")));
  EXPECT_THAT(entries(), ElementsAre(".lock", "m1", "m1.h2"));
  // Dead between the main image and its member: asked again, the rest goes.
  ASSERT_OK(store_.remove(ImageId("m1")));
  ASSERT_OK(remove_set(store_, ImageId("m1")));
  EXPECT_THAT(entries(), ElementsAre(".lock"));
}

TEST_F(ImageChainTest, OnAMembersHostItsBasesAreSafe) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  EXPECT_EQ(h2.remove(ImageId("m1.h2")).error().text(),
            "image m1.h2 is part of the base of m2.h2: remove that first (conflict)");
  EXPECT_EQ(remove_set(h2, ImageId("m1")).error().code, Errc::conflict);
  ASSERT_OK(remove_set(h2, ImageId("m1"), Deltas::remove));
  EXPECT_THAT(h2.list(), IsEmpty());
}

// Merging.

TEST_F(ImageChainTest, AMergedImageStandsInThePlaceOfTheNewest) {
  make_three();
  make({.id = "d", .cut = 4, .base_cut = 3, .base = "c", .puts = {{7, 300}}});
  const Manifest before = *store_.read(ImageId("c"));
  auto merged = merge_chain(store_, ImageId("c"), {});
  ASSERT_TRUE(merged) << merged.error().text();
  EXPECT_EQ(merged->base, std::nullopt);
  EXPECT_EQ(merged->stands_for, checksum_of_manifest(before));
  EXPECT_EQ(merged->parts[0], before.parts[0]) << "the disk is what it was";
  EXPECT_EQ(*store_.read(ImageId("c")), *merged);
  ASSERT_OK(store_.verify(ImageId("c")));
  EXPECT_TRUE(read_working_set(store_.part_directory(ImageId("c"), "memory")));
  expect_memory(store_, "c");
  // The older ones may go now, and the delta fits.
  ASSERT_OK(remove_set(store_, ImageId("b")));
  ASSERT_OK(remove_set(store_, ImageId("a")));
  memory_[7] = 300;
  expect_memory(store_, "d");
  EXPECT_THAT(entries(), ElementsAre(".lock", "c", "d"));
  // Nothing to do any more.
  EXPECT_EQ(*merge_chain(store_, ImageId("c"), {}), *merged);
}

TEST_F(ImageChainTest, APageThatLiesElsewhereIsReadThere) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  for (const char* id : {"m1.h2", "m2.h2"}) keep(store_, h2, id);
  EXPECT_EQ(merge_chain(store_, ImageId("m2"), {}).error().code, Errc::unavailable) << "page 20 came from h2";
  auto log = PagePart::open(h2.part_directory(ImageId("m1.h2"), "memory"));
  ASSERT_TRUE(log);
  std::vector<std::string> asked;
  std::uint64_t copied = 0;
  const LogReader elsewhere = [&](const PagePart& part, std::uint64_t offset, std::span<std::byte> bytes) -> Status {
    asked.push_back(fmt::format("{} {}+{}", part.name(), offset, bytes.size()));
    return log->log().valid() && ::pread(log->log().get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)) == std::ssize(bytes) ? Status() : fail(Errc::io, "pread");
  };
  const auto merged = merge_chain(store_, ImageId("m2"), {.elsewhere = elsewhere, .copied = [&](std::uint64_t bytes) { copied += bytes; return Status(); }});
  ASSERT_TRUE(merged) << merged.error().text();
  EXPECT_THAT(asked, ElementsAre("m1.h2/memory 0+4096"));
  EXPECT_EQ(copied, 0u) << "less than a MiB";
  auto part = PagePart::open(store_.part_directory(ImageId("m2"), "memory"));
  ASSERT_TRUE(part) << part.error().text();
  EXPECT_TRUE(part->index().self_contained());
  Page page;
  ASSERT_OK(part->read(20_page, page));
  EXPECT_EQ(page, page_of(21));
}

TEST_F(ImageChainTest, AReaderOfTheOldOneGoesOn) {
  make_three();
  auto chain = load_chain(store_, ImageId("c"));
  ASSERT_TRUE(chain);
  ASSERT_OK(merge_chain(store_, ImageId("c"), {}));
  ASSERT_OK(remove_set(store_, ImageId("c")));
  EXPECT_EQ(contents_of(*chain), memory_);
}

TEST_F(ImageChainTest, WhoeverOpensAPartWhileAnotherTakesItsPlaceGetsOneOfTheTwo) {
  make_three();
  const fs::path parts[] = {store_.part_directory(ImageId("a"), "memory"), store_.part_directory(ImageId("c"), "memory")};
  const fs::path place = directory_.path() / "place", next = directory_.path() / "next";
  fs::copy(parts[0], place);
  std::atomic<bool> done = false;
  std::jthread replacing([&] {
    for (int i = 1; i <= 300; ++i) {
      fs::copy(parts[i % 2], next);
      EXPECT_TRUE(exchange(place, next));
      fs::remove_all(next);
    }
    done = true;
  });
  while (!done) {
    const auto part = PagePart::open(place);
    ASSERT_TRUE(part) << part.error().text();
    ASSERT_OK(part->verify());
  }
}

TEST_F(ImageChainTest, AMergeThatIsStoppedOrFindsDamageChangesNothing) {
  make_three();
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(merge_chain(store_, ImageId("c"), {.stop = stop.get_token()}).error().code, Errc::canceled);
  expect_memory(store_, "c");
  flip_bit(store_.part_directory(ImageId("a"), "memory") / "pages.log", 8 * page_bytes, 1);
  EXPECT_EQ(merge_chain(store_, ImageId("c"), {}).error().text(),
            "merge image c: part a/memory: page 8 (pages.log offset 32768): checksum differs (corrupt)");
  EXPECT_THAT(entries(), ElementsAre(".lock", "a", "b", "c"));
}

TEST_F(ImageChainTest, EachHostMergesItsShareAndTheBaseGoesWhenAllHave) {
  const Store h2 = open("h2");
  make_set(store_, h2);
  for (const char* id : {"m1.h2", "m2.h2"}) keep(store_, h2, id);
  for (const char* id : {"m1", "m2"}) keep(h2, store_, id);

  // Page 20 moved to the main host unchanged: its contents lie in h2's log, which is not here.
  auto alone = merge_chain(store_, ImageId("m2"), {});
  ASSERT_FALSE(alone);
  EXPECT_EQ(alone.error().code, Errc::unavailable) << alone.error().text();
  // h2 needs nobody.
  auto member = merge_chain(h2, ImageId("m2.h2"), {});
  ASSERT_TRUE(member) << member.error().text();
  EXPECT_EQ(member->base, ImageId("m1")) << "the main host still needs it";

  // With h2's first image here, the main host can, too.
  make(store_, {.id = "m1.h2", .owned = {{20_page, 20}}, .puts = numbered(20, 40), .member_of = "m1"});
  auto main = merge_chain(store_, ImageId("m2"), {});
  ASSERT_TRUE(main) << main.error().text();
  EXPECT_EQ(main->base, ImageId("m1")) << "as far as is known here, h2 is not done";
  keep(store_, h2, "m2.h2");
  main = merge_chain(store_, ImageId("m2"), {});
  ASSERT_TRUE(main) << main.error().text();
  EXPECT_EQ(main->base, std::nullopt);
  ASSERT_OK(store_.verify(ImageId("m2")));
  keep(h2, store_, "m2");
  EXPECT_EQ(merge_chain(h2, ImageId("m2.h2"), {})->base, std::nullopt);

  ASSERT_OK(remove_set(store_, ImageId("m1")));
  ASSERT_OK(remove_set(h2, ImageId("m1")));
  // The main image names the member that was, and the one that stands for it is taken.
  auto chain = load_chain(store_, ImageId("m2"));
  ASSERT_TRUE(chain) << chain.error().text();
  EXPECT_EQ(chain->parts().size(), 2U);
  Page page;
  ASSERT_OK(chain->read(20_page, page));
  EXPECT_EQ(page, page_of(21));
}

/// What the disk of an image consists of; empty: it lies on that of another one.
std::vector<std::string> disk_of(const Store& store, const std::string& id) {
  const auto manifest = store.read(ImageId(id));
  EXPECT_TRUE(manifest && store.verify(ImageId(id)));
  std::vector<std::string> contents;
  for (const File& file : manifest->parts.front().files)
    contents.push_back(file.path + ": " + os::read_text(store.part_directory(ImageId(id), "disk") / file.path).value_or("?"));
  return manifest->parts.front().type == PartType::disk ? contents : std::vector<std::string>();
}

TEST_F(ImageChainTest, AMergedImageHasAllOfItsDisk) {
  make({.id = "a", .cut = 1, .puts = numbered(0, guest_pages)});
  make({.id = "b", .cut = 2, .base_cut = 1, .base = "a", .puts = {{3, 100}}, .disk_layer = 1});
  make({.id = "c", .cut = 3, .base_cut = 2, .base = "b", .puts = {{4, 101}}, .disk_layer = 3});
  make({.id = "d", .cut = 4, .base_cut = 3, .base = "c", .puts = {{5, 102}}, .disk_layer = 4});
  const std::vector<std::string> of_c{"layers/0: disk of a", "layers/1: disk of b", "layers/3: disk of c"};
  ASSERT_OK(merge_chain(store_, ImageId("c"), {}));
  EXPECT_EQ(disk_of(store_, "c"), of_c);
  ASSERT_OK(remove_set(store_, ImageId("b")));
  ASSERT_OK(remove_set(store_, ImageId("a")));
  EXPECT_EQ(disk_of(store_, "c"), of_c);
  EXPECT_EQ(disk_of(store_, "d"), std::vector<std::string>());
  ASSERT_OK(merge_chain(store_, ImageId("d"), {}));
  EXPECT_EQ(disk_of(store_, "d"), (std::vector<std::string>{of_c[0], of_c[1], of_c[2], "layers/4: disk of d"}));
}

TEST_F(ImageChainTest, AMergedImageWhoseDiskIsWholeTakesNothingOfItsBases) {
  make({.id = "a", .cut = 1, .puts = numbered(0, guest_pages)});
  make({.id = "b", .cut = 2, .base_cut = 1, .base = "a", .puts = {{3, 100}}});
  make({.id = "c", .cut = 3, .base_cut = 2, .base = "b", .puts = {{4, 101}}, .disk_layer = 1});
  ASSERT_OK(merge_chain(store_, ImageId("c"), {}));
  EXPECT_EQ(disk_of(store_, "c"), (std::vector<std::string>{"layers/0: disk of b", "layers/1: disk of c"}));
}

TEST_F(ImageChainTest, ADiskThatLiesOnNothingIsNotMerged) {
  make({.id = "a", .cut = 1, .puts = numbered(0, guest_pages), .disk_layer = 1});
  make({.id = "b", .cut = 2, .base_cut = 1, .base = "a", .puts = {{3, 100}}, .disk_layer = 2});
  const auto merged = merge_chain(store_, ImageId("b"), {});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().text(), "merge image b: image b: its disks lie on those of a base that has none (corrupt)");
  EXPECT_EQ(store_.list().size(), 2U);
}

// A disk that is full in the middle of merging.
int merge_on_a_small_disk(const fs::path& root) {
  auto store = Store::open(root);
  if (!store) return 1;
  if (!image::make(*store, {.id = "a", .cut = 1, .puts = numbered(0, guest_pages)})) return 2;
  if (!image::make(*store, {.id = "b", .cut = 2, .base_cut = 1, .base = "a", .puts = {{3, 100}}})) return 3;
  auto merged = merge_chain(*store, ImageId("b"), {});
  if (merged || merged.error().code != Errc::no_space) return 4;
  auto chain = load_chain(*store, ImageId("b"));
  if (!chain || contents_of(*chain) != over(numbered(0, guest_pages), {{3, 100}})) return 5;
  return store->list().size() == 2 ? 0 : 6;
}

TEST_F(ImageChainTest, AFullDiskLeavesTheOldChain) {
  const fs::path small = directory_.path() / "small";
  fs::create_directory(small);
  const auto code = on_a_small_disk(small, "260k", [&] { return merge_on_a_small_disk(small); });
  if (!code) GTEST_SKIP() << "needs the right to mount a tmpfs";
  EXPECT_EQ(code, 0);
}

/// A child that is killed on its way into its `number`-th system call. Under ptrace, so that no step is left out and
/// the code under test knows nothing of it. False when it came to its end before.
bool killed_at(int number, const std::function<void()>& work) {
  const pid_t child = ::fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    work();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  for (int stops = 0; stops < 2 * number; ++stops) {  // into each and out of it
    ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status)) return false;
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return true;
}

/// Some hundred merges: where fsync costs nothing.
class ImageMergeCrashTest : public ImageChainTest {
 protected:
  ImageMergeCrashTest() : ImageChainTest("/dev/shm") {}
};

TEST_F(ImageMergeCrashTest, AMergeKilledAtAnyStepLeavesTheOldChainOrTheNew) {
  make_three();
  const Manifest before = *store_.read(ImageId("c"));
  const fs::path root = store_.root(), copy = directory_.path() / "copy";
  bool killed = true;
  int merged = 0, unmerged = 0;
  for (int number = 1; killed; ++number) {
    fs::remove_all(copy);
    fs::copy(root, copy, fs::copy_options::recursive);
    killed = killed_at(number, [&] {
      auto store = Store::open(copy);
      if (store) (void)merge_chain(*store, ImageId("c"), {});
    });
    auto store = Store::open(copy);  // as the next agent does
    ASSERT_TRUE(store) << store.error().text();
    for (const char* id : {"a", "b", "c"}) ASSERT_OK(store->verify(ImageId(id)));
    const Manifest now = *store->read(ImageId("c"));
    if (now == before)
      ++unmerged;
    else
      ++merged;
    ASSERT_EQ(now.base.has_value(), now == before);
    auto chain = load_chain(*store, ImageId("c"));
    ASSERT_TRUE(chain) << "killed at " << number << ": " << chain.error().text();
    ASSERT_EQ(contents_of(*chain), memory_) << "killed at " << number;
    std::size_t left = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(copy)) ++left;
    ASSERT_EQ(left, 4U) << "killed at " << number;
  }
  EXPECT_GT(merged, 1);
  EXPECT_GT(unmerged, 20);
}

}  // namespace
}  // namespace yado::image
