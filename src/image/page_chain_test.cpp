#include "image/page_chain.hpp"

#include <gmock/gmock.h>

#include "base/units.hpp"
#include "image/flat_memory.hpp"
#include "image/page_testing.hpp"
#include "image/store.hpp"
#include "image/temporary_directory.hpp"
#include "image/working_set.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

struct WantedPart {
  std::string name;
  std::uint64_t guest_pages = 10;
  int cut = 1;
  int base = 0;  // 0: self-contained
  PageSet owned;
  MemoryModel puts;
};

class ImagePageChainTest : public ::testing::Test {
 protected:
  PagePart part(const WantedPart& wanted) {
    const fs::path directory = new_part(directory_.path(), fmt::format("{}/{}", images_++, wanted.name));
    auto writer = PageWriter::create(directory, {.guest_pages = wanted.guest_pages,
                                                 .cut = cut_number(wanted.cut),
                                                 .base_cut = wanted.base ? cut_number(wanted.base) : CutId{}});
    EXPECT_TRUE(writer) << writer.error().text();
    PageAppender appender = writer->appender();
    for (const auto& [number, contents] : wanted.puts)
      EXPECT_TRUE(appender.put(PageNumber{number}, page_of(contents), 0_round));
    EXPECT_TRUE(appender.flush());
    auto index = writer->finish(wanted.owned);
    EXPECT_TRUE(index) << index.error().text();
    return std::move(*PagePart::open(directory));
  }
  PagePart whole(int cut, int base, MemoryModel puts, std::uint64_t guest_pages = 10) {
    return part({"pages", guest_pages, cut, base, all_pages(guest_pages), std::move(puts)});
  }
  static MemoryModel numbered(std::uint64_t from, std::uint64_t to, std::uint64_t plus = 1) {
    MemoryModel model;
    for (std::uint64_t number = from; number < to; ++number) model[number] = number + plus;
    return model;
  }

  template <class... Parts>
  static std::vector<PagePart> image(Parts... parts) {
    std::vector<PagePart> list;
    (list.push_back(std::move(parts)), ...);
    return list;
  }
  template <class... Images>
  static Result<PageChain> chain(Images... images) {
    std::vector<std::vector<PagePart>> list;
    (list.push_back(std::move(images)), ...);
    return PageChain::make(std::move(list));
  }
  template <class... Images>
  static std::string refusal(Images... images) {
    auto made = chain(std::move(images)...);
    if (made) return "(accepted)";
    EXPECT_EQ(made.error().code, Errc::conflict);
    return made.error().message;
  }

  static void expect_equal(const PageChain& chain, const MemoryModel& model) {
    ASSERT_EQ(chain.guest_pages(), model.size());
    Page page;
    for (const auto& [number, contents] : model) {
      ASSERT_OK(chain.read(PageNumber{number}, page));
      ASSERT_EQ(page, page_of(contents)) << "page " << number;
    }
    // In bulk: every page exactly once, from whatever part.
    MemoryModel seen;
    for (const PagePart* part : chain.parts())
      ASSERT_OK(part->scan(chain.live(*part), [&](PageNumber number, std::optional<PageContents> contents) {
        const std::uint64_t expected = model.at(value_of(number));
        EXPECT_EQ(contents.has_value(), expected != 0);
        if (contents) {
          EXPECT_TRUE(std::ranges::equal(*contents, page_of(expected))) << value_of(number);
        }
        EXPECT_TRUE(seen.emplace(value_of(number), expected).second) << "page " << value_of(number) << " twice";
        return Status();
      }));
    EXPECT_EQ(seen, model);
    // One after the other, in their order.
    std::uint64_t next = 0;
    chain.visit([&](PageNumber number, const PagePart& part, const PageRecord& record) {
      EXPECT_EQ(value_of(number), next++);
      const PageChain::Place place = chain.find(number);
      EXPECT_TRUE(place.part == &part && place.page.record == record) << "page " << value_of(number);
    });
    EXPECT_EQ(next, chain.guest_pages());
    EXPECT_EQ(chain.here(), all_pages(chain.guest_pages()));
  }

  TemporaryDirectory directory_;
  int images_ = 0;
};

TEST_F(ImagePageChainTest, OfSomePartsItHasWhatIsInThemAndTheNewestOfThat) {
  // What one host has of a chain, a share of its second image missing in between.
  std::vector<std::vector<PagePart>> own;
  own.push_back(image(part({"h2", 10, 1, 0, {{6_page, 4}}, numbered(6, 10)})));
  own.push_back(image(part({"h2", 10, 3, 2, {{6_page, 4}}, {{7, 300}}})));
  const auto made = PageChain::make(std::move(own), PageChain::Coverage::some);
  ASSERT_TRUE(made) << made.error().text();
  EXPECT_FALSE(made->has(5_page));
  ASSERT_TRUE(made->has(9_page));
  Page page;
  ASSERT_OK(made->read(7_page, page));
  EXPECT_EQ(page, page_of(300));
  ASSERT_OK(made->read(9_page, page));
  EXPECT_EQ(page, page_of(10));
  EXPECT_EQ(made->cut(), cut_number(3));
}

TEST_F(ImagePageChainTest, TheNewestRecordCounts) {
  auto made = chain(image(whole(1, 0, numbered(0, 10))), image(whole(2, 1, {{3, 100}, {4, 0}, {5, 101}})),
                    image(whole(3, 2, {{4, 200}, {9, 201}})));
  ASSERT_TRUE(made) << made.error().text();
  MemoryModel model = numbered(0, 10);
  model[3] = 100;
  model[4] = 200;
  model[5] = 101;
  model[9] = 201;
  expect_equal(*made, model);
  EXPECT_EQ(made->cut(), cut_number(3));
}

TEST_F(ImagePageChainTest, PagesMayMoveBetweenHosts) {
  // Page 4 moved from h1 to h2 and changed there; page 5 moved back unchanged, its record stays where it is.
  auto made = chain(image(part({"pages-h1", 10, 1, 0, {{0_page, 5}}, numbered(0, 5)}),
                          part({"pages-h2", 10, 1, 0, {{5_page, 5}}, numbered(5, 10)})),
                    image(part({"pages-h1", 10, 2, 1, {{0_page, 4}, {5_page, 1}}, {{0, 50}}}),
                          part({"pages-h2", 10, 2, 1, {{4_page, 1}, {6_page, 4}}, {{4, 54}}})));
  ASSERT_TRUE(made) << made.error().text();
  MemoryModel model = numbered(0, 10);
  model[0] = 50;
  model[4] = 54;
  expect_equal(*made, model);
  EXPECT_EQ(made->find(5_page).part->name(), "pages-h2");
}

TEST_F(ImagePageChainTest, EveryPageBelongsToExactlyOnePart) {
  const auto h1 = [&](PageSet owned) {
    MemoryModel puts;
    for (const PageRange& range : owned) puts.merge(numbered(range.begin(), range.end()));
    return part({"pages-h1", 10, 1, 0, std::move(owned), std::move(puts)});
  };
  const auto h2 = [&] { return part({"pages-h2", 10, 1, 0, {{5_page, 5}}, numbered(5, 10)}); };
  EXPECT_EQ(refusal(image(h1({{0_page, 5}}), h2())), "(accepted)");
  EXPECT_EQ(refusal(image(h1({{0_page, 6}}), h2())),
            "image 1 of 1 in the chain: page 5 belongs to pages-h1 and to pages-h2");
  EXPECT_EQ(refusal(image(h1({{0_page, 4}}), h2())), "image 1 of 1 in the chain: page 4 belongs to no part");
  EXPECT_EQ(refusal(image(h1({{1_page, 4}}), h2())), "image 1 of 1 in the chain: page 0 belongs to no part");
  EXPECT_EQ(refusal(image(h1({{0_page, 5}}))), "image 1 of 1 in the chain: page 5 belongs to no part");
  EXPECT_EQ(refusal(image(h1({{0_page, 10}}), h2())),
            "image 1 of 1 in the chain: page 5 belongs to pages-h1 and to pages-h2");
  // Of a delta the same is asked, whatever it has records of.
  EXPECT_EQ(refusal(image(whole(1, 0, numbered(0, 10))), image(part({"pages-h1", 10, 2, 1, {{0_page, 9}}, {}}))),
            "image 2 of 2 in the chain: page 9 belongs to no part");
}

TEST_F(ImagePageChainTest, WhatDoesNotFollowIsNoChain) {
  const auto base = [&] { return image(whole(1, 0, numbered(0, 10))); };
  EXPECT_EQ(refusal(base(), image(whole(3, 2, {}))),
            fmt::format("image 2 of 2 in the chain: part pages: its base is the cut {}, not {}", cut_number(2).hex(),
                        cut_number(1).hex()));
  EXPECT_EQ(refusal(image(whole(2, 1, {}))),
            "image 1 of 1 in the chain: part pages: is a delta, and its base is not there");
  EXPECT_EQ(refusal(base(), image(whole(2, 1, {}, 11))),
            "image 2 of 2 in the chain: part pages: a guest of 11 pages, not of 10");
  EXPECT_EQ(refusal(image(part({"pages-h1", 10, 1, 0, {{0_page, 5}}, numbered(0, 5)}),
                          part({"pages-h2", 10, 2, 0, {{5_page, 5}}, numbered(5, 10)}))),
            "image 1 of 1 in the chain: part pages-h2: of another cut than part pages-h1");
  EXPECT_EQ(PageChain::make({}).error().code, Errc::invalid_argument);
  EXPECT_EQ(chain(image()).error().code, Errc::invalid_argument);
}

TEST_F(ImagePageChainTest, AChainHasABound) {
  std::vector<std::vector<PagePart>> images;
  images.push_back(image(whole(1, 0, {{0, 1}}, 1)));
  for (int cut = 2; cut <= 17; ++cut)
    images.push_back(image(whole(cut, cut - 1, {{0, static_cast<std::uint64_t>(cut)}}, 1)));
  auto too_long = PageChain::make(std::move(images));
  ASSERT_FALSE(too_long);
  EXPECT_EQ(too_long.error().code, Errc::invalid_argument);
  EXPECT_EQ(too_long.error().message, "a chain of 17 images; at most 16: merge it before it grows");
}

TEST_F(ImagePageChainTest, DamageInALiveRecordIsFoundInADeadOneNotLookedFor) {
  std::vector<PagePart> base = image(whole(1, 0, numbered(0, 10)));
  flip_bit(directory_.path() / "0/pages/pages.log", 3 * page_bytes + 7, 2);
  auto alone = chain(std::move(base));
  ASSERT_TRUE(alone);
  auto merged = merge(*alone, new_part(directory_.path(), "merged"), {.owned = all_pages(10)});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().message, "part pages: page 3 (pages.log offset 12288): checksum differs");
  EXPECT_TRUE(fs::is_empty(directory_.path() / "merged"));

  // A newer version of page 3 supersedes it: a merge reads live records only.
  auto opened = PagePart::open(directory_.path() / "0/pages");
  ASSERT_TRUE(opened);
  auto both = chain(image(std::move(*opened)), image(whole(2, 1, {{3, 99}})));
  ASSERT_TRUE(both);
  ASSERT_OK(merge(*both, new_part(directory_.path(), "merged"), {.owned = all_pages(10)}));
}

TEST_F(ImagePageChainTest, AMergeThatIsStoppedLeavesNothing) {
  auto made = chain(image(whole(1, 0, numbered(0, 10))));
  ASSERT_TRUE(made);
  std::stop_source stop;
  stop.request_stop();
  auto merged = merge(*made, new_part(directory_.path(), "merged"), {.owned = all_pages(10), .stop = stop.get_token()});
  ASSERT_FALSE(merged);
  EXPECT_EQ(merged.error().code, Errc::canceled);
  EXPECT_TRUE(fs::is_empty(directory_.path() / "merged"));
}

TEST_F(ImagePageChainTest, OneHostMayMergeItsShareBeforeTheOthersDo) {
  // h1's share of the second image is merged: self-contained. h2's is a delta still, and needs the first.
  auto made =
      chain(image(whole(1, 0, numbered(0, 10))), image(part({"pages-h1", 10, 2, 0, {{0_page, 5}}, numbered(0, 5, 50)}),
                                                       part({"pages-h2", 10, 2, 1, {{5_page, 5}}, {{7, 77}}})));
  ASSERT_TRUE(made) << made.error().text();
  MemoryModel model = numbered(0, 5, 50);
  model.merge(numbered(5, 10));
  model[7] = 77;
  expect_equal(*made, model);
}

TEST_F(ImagePageChainTest, AHostMergesItsShareAndDeltasGoOnFitting) {
  auto made = chain(image(whole(1, 0, numbered(0, 10))), image(whole(2, 1, {{3, 100}, {7, 101}})));
  ASSERT_TRUE(made);
  std::vector<PagePart> merged;
  for (const auto& [name, owned] : {std::pair{"pages-h1", PageSet{{0_page, 4}}}, {"pages-h2", PageSet{{4_page, 6}}}}) {
    const fs::path directory = new_part(directory_.path(), name);
    ASSERT_OK(merge(*made, directory, {.owned = owned}));
    merged.push_back(std::move(*PagePart::open(directory)));
  }
  auto again = chain(std::move(merged), image(whole(3, 2, {{0, 200}})));
  ASSERT_TRUE(again) << again.error().text();
  MemoryModel model = numbered(0, 10);
  model[3] = 100;
  model[7] = 101;
  model[0] = 200;
  expect_equal(*again, model);
}

TEST_F(ImagePageChainTest, AnImageOfPagesGoesThroughTheStore) {
  auto store = Store::open(directory_.path() / "store");
  ASSERT_TRUE(store) << store.error().text();
  const ImageId id("vm-img.1");
  {
    auto draft = store->begin(id);
    ASSERT_TRUE(draft) << draft.error().text();
    auto directory = draft->part_directory("pages-h1");
    ASSERT_TRUE(directory);
    auto writer = PageWriter::create(*directory, {.guest_pages = 10, .cut = cut_number(1)});
    ASSERT_TRUE(writer) << writer.error().text();
    PageAppender appender = writer->appender();
    for (const auto& [number, contents] : numbered(0, 10))
      ASSERT_OK(appender.put(PageNumber{number}, page_of(contents), 0_round));
    ASSERT_OK(appender.flush());
    ASSERT_OK(writer->finish(all_pages(10)));
    ASSERT_OK(write_working_set(*directory, {10, {4_page, 2_page}}));
    ASSERT_OK(draft->commit({.id = id, .workload = WorkloadId("vm"), .parts = {{PartType::pages, "pages-h1", {}}}}));
  }
  ASSERT_OK(store->verify(id));
  auto made = chain(image(std::move(*PagePart::open(store->part_directory(id, "pages-h1")))));
  ASSERT_TRUE(made) << made.error().text();
  expect_equal(*made, numbered(0, 10));
  EXPECT_EQ(read_working_set(store->part_directory(id, "pages-h1"))->pages, (std::vector{4_page, 2_page}));
}

TEST_F(ImagePageChainTest, AnExportIsSparse) {
  MemoryModel model;
  for (std::uint64_t number = 0; number < 2048; ++number) model[number] = number % 16 == 5 ? number : 0;
  auto made = chain(image(whole(1, 0, model, 2048)));
  ASSERT_TRUE(made);
  const fs::path flat = directory_.path() / "memory";
  ASSERT_OK(export_flat(*made, flat));
  EXPECT_EQ(fs::file_size(flat), 2048 * page_bytes);
  EXPECT_LE(allocated_bytes(flat), 128 * page_bytes + 32_KiB);
  EXPECT_EQ(fs::status(flat).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  // What is there is not overwritten.
  EXPECT_EQ(export_flat(*made, flat).error().code, Errc::already_exists);
  EXPECT_EQ(fs::file_size(flat), 2048 * page_bytes);
  // Back, also when zeros were written out as data.
  std::ofstream(flat, std::ios::binary | std::ios::in).write(std::string(5 * page_bytes, '\0').data(), 5 * page_bytes);
  const fs::path back = new_part(directory_.path(), "back");
  ASSERT_OK(import_flat(flat, back, cut_number(9)));
  auto imported = chain(image(std::move(*PagePart::open(back))));
  ASSERT_TRUE(imported);
  expect_equal(*imported, model);
}

TEST_F(ImagePageChainTest, AFailedExportLeavesNoFile) {
  auto made = chain(image(whole(1, 0, numbered(0, 10))));
  ASSERT_TRUE(made);
  flip_bit(directory_.path() / "0/pages/pages.log", 9 * page_bytes, 0);
  const Status exported = export_flat(*made, directory_.path() / "memory");
  ASSERT_FALSE(exported);
  EXPECT_THAT(exported.error().message, HasSubstr("page 9 (pages.log offset 36864): checksum differs"));
  EXPECT_FALSE(fs::exists(directory_.path() / "memory"));
}

TEST_F(ImagePageChainTest, AFileThatIsNoMemoryIsNotImported) {
  const fs::path file = directory_.path() / "file";
  put_file(file, "");
  EXPECT_EQ(import_flat(file, new_part(directory_.path(), "part"), cut_number(1)).error().code, Errc::invalid_argument);
  put_file(file, std::string(4097, 'x'));
  EXPECT_EQ(import_flat(file, new_part(directory_.path(), "part"), cut_number(1)).error().code, Errc::invalid_argument);
  EXPECT_EQ(import_flat(directory_.path() / "none", directory_.path() / "part", cut_number(1)).error().code,
            Errc::not_found);
  EXPECT_TRUE(fs::is_empty(directory_.path() / "part"));
}

// Random histories of a guest on two hosts against a plain map: a base and ten deltas, live rounds in each, pages that
// move.
class ImagePageHistoryTest : public ImagePageChainTest, public ::testing::WithParamInterface<std::uint64_t> {
 protected:
  static constexpr std::uint64_t guest_pages = 700;

  ImagePageHistoryTest() : random_(GetParam()) {
    for (std::uint64_t number = 0; number < guest_pages; ++number) {
      memory_[number] = 0;
      owner_.push_back(number < 300 ? 0 : 1);
    }
  }

  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

  // Zeros and pages that are there already come up often.
  std::uint64_t new_contents() {
    switch (below(8)) {
      case 0:
        return 0;
      case 1:
        return 1 + below(3);
      case 2:
        return memory_[below(guest_pages)];
      default:
        return 1000 + ++last_;
    }
  }

  // The writers of one image on both hosts. The guest writes and pages move while rounds go on; in the end the owner of
  // a page has put its last version, and the other host may have put older ones.
  std::vector<PagePart> checkpoint(int cut) {
    std::vector<PageWriter> writers;
    std::vector<PageAppender> appenders;  // two per host
    std::vector<fs::path> directories;
    for (const char* name : {"pages-h1", "pages-h2"}) {
      directories.push_back(new_part(directory_.path(), fmt::format("{}/{}", cut, name)));
      auto writer = PageWriter::create(
          directories.back(),
          {.guest_pages = guest_pages, .cut = cut_number(cut), .base_cut = cut == 1 ? CutId{} : cut_number(cut - 1)});
      EXPECT_TRUE(writer) << writer.error().text();
      writers.push_back(std::move(*writer));
    }
    for (PageWriter& writer : writers)
      for (int i = 0; i < 2; ++i) appenders.push_back(writer.appender());

    std::set<std::uint64_t> dirty = std::exchange(dirty_, {});
    if (cut == 1)
      for (std::uint64_t number = 0; number < guest_pages; ++number) dirty.insert(number);
    std::set<std::uint64_t> changed = dirty;  // since the base cut
    for (std::uint32_t round = 0; round < 4; ++round) {
      for (const std::uint64_t number : dirty) {
        PageAppender& appender = appenders[2 * owner_[number] + below(2)];
        EXPECT_TRUE(appender.put(PageNumber{number}, page_of(memory_[number]), Round{2 * round + 1}));
        if (below(20) == 0) {  // an older version comes late
          EXPECT_TRUE(appenders[2 * owner_[number] + below(2)].put(PageNumber{number}, page_of(5), Round{2 * round}));
        }
        if (below(50) == 0) {
          EXPECT_TRUE(appender.flush());
        }
      }
      dirty.clear();
      if (round == 3) break;  // stopped: what was dirty has just been put
      run(dirty, 60);
      for (std::uint64_t moves = below(20); moves > 0; --moves) {
        const std::uint64_t number = below(guest_pages);
        owner_[number] ^= 1;
        if (cut == 1 || changed.contains(number)) dirty.insert(number);  // its record has to go with it
      }
      changed.insert(dirty.begin(), dirty.end());
    }
    std::vector<PagePart> parts;
    for (PageAppender& appender : appenders) EXPECT_TRUE(appender.flush());
    for (std::size_t host = 0; host < 2; ++host) {
      std::vector<PageRange> owned;
      for (std::uint64_t number = 0; number < guest_pages; ++number)
        if (owner_[number] == host) owned.push_back({PageNumber{number}, 1});
      auto index = writers[host].finish(normalised(owned));
      EXPECT_TRUE(index) << index.error().text();
      auto opened = PagePart::open(directories[host]);
      EXPECT_TRUE(opened) << opened.error().text();
      parts.push_back(std::move(*opened));
    }
    // A delta has records only of what changed (or moved after it had).
    const std::uint64_t records = parts[0].index().records() + parts[1].index().records();
    EXPECT_EQ(records, changed.size());
    return parts;
  }

  void run(std::set<std::uint64_t>& dirty, std::uint64_t writes) {
    for (; writes > 0; --writes) {
      const std::uint64_t number = below(4) ? below(guest_pages) : below(40);
      memory_[number] = new_contents();
      dirty.insert(number);
    }
  }

  std::mt19937_64 random_;
  MemoryModel memory_;
  std::vector<std::size_t> owner_;
  std::set<std::uint64_t> dirty_;
  std::uint64_t last_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Seeds, ImagePageHistoryTest, ::testing::Range<std::uint64_t>(1, 4));

TEST_P(ImagePageHistoryTest, ABaseAndTenDeltasEqualAPlainMap) {
  std::vector<std::vector<fs::path>> images;
  for (int cut = 1; cut <= 11; ++cut) {
    run(dirty_, 100);
    std::vector<PagePart> parts = checkpoint(cut);
    images.push_back(
        {directory_.path() / std::to_string(cut) / "pages-h1", directory_.path() / std::to_string(cut) / "pages-h2"});
    std::vector<std::vector<PagePart>> list;
    for (const auto& directories : images) {
      list.emplace_back();
      for (const fs::path& directory : directories) list.back().push_back(std::move(*PagePart::open(directory)));
    }
    auto made = PageChain::make(std::move(list));
    ASSERT_TRUE(made) << made.error().text();
    expect_equal(*made, memory_);
    if (cut % 5 != 0) continue;

    // Merged it is the same, and the next delta goes on from there.
    const fs::path merged = new_part(directory_.path(), fmt::format("merged-{}", cut));
    ASSERT_OK(merge(*made, merged, {.owned = all_pages(guest_pages)}));
    auto alone = PageChain::make([&] {
      std::vector<std::vector<PagePart>> one(1);
      one[0].push_back(std::move(*PagePart::open(merged)));
      return one;
    }());
    ASSERT_TRUE(alone) << alone.error().text();
    expect_equal(*alone, memory_);
    if (cut == 10) images = {{merged}};

    // So it is through a flat file.
    const fs::path flat = directory_.path() / fmt::format("flat-{}", cut);
    ASSERT_OK(export_flat(*made, flat));
    const std::string bytes = read_file(flat);
    ASSERT_EQ(bytes.size(), guest_pages * page_bytes);
    for (const auto& [number, contents] : memory_) {
      const Page page = page_of(contents);
      ASSERT_EQ(std::memcmp(bytes.data() + number * page_bytes, page.data(), page_bytes), 0) << "page " << number;
    }
    const fs::path imported = new_part(directory_.path(), fmt::format("imported-{}", cut));
    ASSERT_OK(import_flat(flat, imported, cut_number(99)));
    auto back = PagePart::open(imported);
    ASSERT_TRUE(back);
    Page page;
    for (const auto& [number, contents] : memory_) {
      ASSERT_OK(back->read(PageNumber{number}, page));
      ASSERT_EQ(page, page_of(contents)) << "page " << number;
    }
  }
}

}  // namespace
}  // namespace yado::image
