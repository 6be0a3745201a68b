#include "image/page_writer.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <thread>

#include "base/units.hpp"
#include "image/page_testing.hpp"
#include "image/small_disk.hpp"
#include "image/temporary_directory.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// What the file system itself takes to say where `pages` scattered pages lie (it counts in st_blocks).
constexpr std::uint64_t file_system(std::uint64_t pages) { return 16_KiB + pages * 64; }

class ImagePageWriterTest : public ::testing::TestWithParam<Caching> {
 protected:
  fs::path part() const { return new_part(directory_.path(), "pages-h1"); }
  fs::path log() const { return part() / "pages.log"; }

  PageWriter writer(std::uint64_t guest_pages, const CutId& base = {}) const {
    auto made = PageWriter::create(
        part(), {.guest_pages = guest_pages, .cut = cut_number(1), .base_cut = base, .caching = GetParam()});
    EXPECT_TRUE(made) << made.error().text();
    return std::move(*made);
  }

  // Every way to read agrees with the model, and there is nothing else.
  void expect_holds(const MemoryModel& model) const {
    auto opened = PagePart::open(part());
    ASSERT_TRUE(opened) << opened.error().text();
    EXPECT_EQ(opened->index().records(), model.size());
    Page page;
    for (const auto& [number, contents] : model) {
      ASSERT_OK(opened->read(PageNumber{number}, page));
      EXPECT_EQ(page, page_of(contents)) << "page " << number;
      const PageRecord record = *opened->index().find(PageNumber{number});
      ASSERT_EQ(record.zero(), contents == 0) << "page " << number;
      if (record.zero()) continue;
      ASSERT_EQ(::pread(opened->log().get(), page.data(), page.size(), static_cast<off_t>(record.log_offset())), 4096);
      EXPECT_EQ(page, page_of(contents)) << "page " << number << " by its offset";
    }
    MemoryModel scanned;
    ASSERT_OK(opened->scan(opened->in_file_order(), [&](PageNumber number, std::optional<PageContents> contents) {
      const std::uint64_t expected = model.contains(value_of(number)) ? model.at(value_of(number)) : ~0ULL;
      EXPECT_EQ(contents.has_value(), expected != 0);
      if (contents) {
        EXPECT_TRUE(std::ranges::equal(*contents, page_of(expected))) << "page " << value_of(number);
      }
      EXPECT_TRUE(scanned.emplace(value_of(number), expected).second) << "page " << value_of(number) << " twice";
      return Status();
    }));
    EXPECT_EQ(scanned, model);
    // Pages that have none say so.
    for (std::uint64_t number = 0; number < opened->index().guest_pages(); ++number) {
      if (model.contains(number)) continue;
      const Status read = opened->read(PageNumber{number}, page);
      ASSERT_FALSE(read) << "page " << number;
      EXPECT_EQ(read.error().code, Errc::not_found);
    }
  }

  TemporaryDirectory directory_;
};

INSTANTIATE_TEST_SUITE_P(, ImagePageWriterTest, ::testing::Values(Caching::page_cache, Caching::direct),
                         [](const auto& suite) { return suite.param == Caching::direct ? "Direct" : "PageCache"; });

TEST_P(ImagePageWriterTest, WhatWasPutIsRead) {
  PageWriter writer = this->writer(600);
  PageAppender appender = writer.appender();
  MemoryModel model;
  for (std::uint64_t number = 0; number < 600; ++number) {  // more than two extents, the last one not full
    ASSERT_OK(appender.put(PageNumber{number}, page_of(number + 1), 0_round));
    model[number] = number + 1;
  }
  ASSERT_OK(appender.flush());
  auto index = writer.finish(all_pages(600));
  ASSERT_TRUE(index) << index.error().text();
  EXPECT_EQ(fs::file_size(log()), 600 * page_bytes);
  EXPECT_EQ(PagePart::open(part())->index(), *index);
  expect_holds(model);
}

TEST_P(ImagePageWriterTest, TheHigherRoundWinsWhoeverComesFirst) {
  PageWriter writer = this->writer(4);
  PageAppender one = writer.appender();
  PageAppender two = writer.appender();
  ASSERT_OK(one.put(0_page, page_of(10), 1_round));
  ASSERT_OK(two.put(0_page, page_of(11), 2_round));
  ASSERT_OK(one.put(0_page, page_of(12), 1_round));  // late
  ASSERT_OK(one.put(1_page, page_of(20), 1_round));
  ASSERT_OK(two.put(1_page, page_of(21), 1_round));  // the same round: the later
  ASSERT_OK(one.put(2_page, page_of(30), 7_round));
  ASSERT_OK(two.put_zeros(2_page, 8_round));
  ASSERT_OK(one.put_zeros(3_page, 1_round));
  ASSERT_OK(two.put(3_page, page_of(40), 2_round));
  ASSERT_OK(one.flush());
  ASSERT_OK(two.flush());
  ASSERT_OK(writer.finish(all_pages(4)));
  expect_holds({{0, 11}, {1, 21}, {2, 0}, {3, 40}});
  EXPECT_EQ(writer.figures().superseded, 5U);
}

TEST_P(ImagePageWriterTest, ZerosAndDuplicatesTakeNoRoom) {
  constexpr std::uint64_t pages = 4096;
  PageWriter writer = this->writer(pages);
  PageAppender one = writer.appender();
  PageAppender two = writer.appender();
  MemoryModel model;
  for (std::uint64_t number = 0; number < pages; ++number) {
    model[number] = number % 4;  // zeros and three different pages
    ASSERT_OK((number % 2 ? one : two).put(PageNumber{number}, page_of(model[number]), 0_round));
    if (number % 100 == 0) ASSERT_OK((number % 200 ? one : two).flush());
  }
  ASSERT_OK(one.flush());
  ASSERT_OK(two.flush());
  ASSERT_OK(writer.finish(all_pages(pages)));
  expect_holds(model);
  // Three pages, at most twice per writer: what is not in memory any more is not compared with.
  EXPECT_LE(writer.figures().bytes_written, 12 * page_bytes);
  EXPECT_EQ(writer.figures().zeros, pages / 4);
  EXPECT_EQ(writer.figures().duplicates, pages * 3 / 4 - writer.figures().bytes_written / page_bytes);
  EXPECT_LE(allocated_bytes(log()), 12 * page_bytes + 8_KiB);
}

// XXH3 multiplies the halves of data XOR key: where one half is zero, the other does not count but in a sum. So whoever
// knows the default key can make two pages of one checksum.
Page colliding(std::uint32_t one, std::uint32_t other) {
  Page page{};
  constexpr std::uint32_t key_0 = 0x396cfeb8, key_1 = 0x2c81017c;  // of the first lane in the first two stripes
  std::memcpy(page.data(), &key_0, 4);
  std::memcpy(page.data() + 4, &one, 4);
  std::memcpy(page.data() + 64, &key_1, 4);
  std::memcpy(page.data() + 68, &other, 4);
  return page;
}

TEST_P(ImagePageWriterTest, PagesOfOneChecksumAreNotTakenForEqual) {
  const std::array pages{colliding(1, 2), colliding(2, 1), colliding(0, 3)};
  ASSERT_EQ(checksum_of(pages[0]), checksum_of(pages[1]));
  ASSERT_EQ(checksum_of(pages[0]), checksum_of(pages[2]));
  PageWriter writer = this->writer(9);
  PageAppender appender = writer.appender();
  for (std::uint64_t number = 0; number < 9; ++number) {
    ASSERT_OK(appender.put(PageNumber{number}, pages[number % 3], 0_round));
    if (number % 2 == 1) ASSERT_OK(appender.flush());  // compared in the buffer, and with what was repeated
  }
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish(all_pages(9)));
  auto opened = PagePart::open(part());
  ASSERT_TRUE(opened);
  Page page;
  for (std::uint64_t number = 0; number < 9; ++number) {
    ASSERT_OK(opened->read(PageNumber{number}, page));
    EXPECT_EQ(page, pages[number % 3]) << number;
  }
}

TEST_P(ImagePageWriterTest, APartOfZerosHasAnEmptyLog) {
  PageWriter writer = this->writer(1000);
  PageAppender appender = writer.appender();
  MemoryModel model;
  for (std::uint64_t number = 0; number < 1000; ++number) {
    ASSERT_OK(appender.put_zeros(PageNumber{number}, 0_round));
    model[number] = 0;
  }
  ASSERT_OK(writer.finish(all_pages(1000)));
  EXPECT_EQ(fs::file_size(log()), 0U);
  expect_holds(model);
}

TEST_P(ImagePageWriterTest, ThePlaceOfADuplicateLivesAsLongAsAnyOfItsPages) {
  PageWriter writer = this->writer(600);
  PageAppender appender = writer.appender();
  ASSERT_OK(appender.put(0_page, page_of(7), 0_round));
  ASSERT_OK(appender.put(1_page, page_of(7), 0_round));
  ASSERT_OK(appender.flush());
  ASSERT_OK(appender.put(2_page, page_of(7), 0_round));
  MemoryModel model{{1, 7}};
  for (std::uint64_t round = 1; round < 3; ++round)
    for (std::uint64_t number = 0; number < 600; ++number) {
      if (number == 1) continue;
      model[number] = 1000 * round + number;
      ASSERT_OK(appender.put(PageNumber{number}, page_of(model[number]), Round{static_cast<std::uint32_t>(round)}));
    }
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish(all_pages(600)));
  expect_holds(model);
}

TEST_P(ImagePageWriterTest, ADeadPlaceIsNotUsedAgain) {
  constexpr std::uint64_t pages = 256;
  PageWriter writer = this->writer(pages);
  PageAppender appender = writer.appender();
  MemoryModel model;
  // One contents everywhere, then nowhere for so long that its slot is punched out, then everywhere again.
  for (std::uint32_t round = 0; round < 6; ++round)
    for (std::uint64_t number = 0; number < pages; ++number) {
      model[number] = round == 0 || round == 5 ? 7 : 1000 * round + number;
      ASSERT_OK(appender.put(PageNumber{number}, page_of(model[number]), Round{round}));
      if (number == 100) ASSERT_OK(appender.flush());
    }
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish(all_pages(pages)));
  expect_holds(model);
}

TEST_P(ImagePageWriterTest, DeadVersionsArePunchedOutWhileTheLogGrows) {
  constexpr std::uint64_t pages = 2048;
  PageWriter writer = this->writer(pages);
  PageAppender appender = writer.appender();
  std::mt19937_64 random(5);
  std::uint64_t version = 0, most = 0;
  MemoryModel model;
  const auto put = [&](std::uint64_t number, std::uint32_t round) {
    model[number] = ++version;
    ASSERT_OK(appender.put(PageNumber{number}, page_of(version), Round{round}));
  };
  for (std::uint64_t number = 0; number < pages; ++number) put(number, 0);
  for (std::uint32_t round = 1; round <= 5; ++round) {
    for (std::uint64_t i = 0; i < pages; ++i) put(random() % pages, round);
    most = std::max(most, allocated_bytes(log()));
  }
  ASSERT_OK(appender.flush());
  EXPECT_GE(fs::file_size(log()), 6 * pages * page_bytes);
  EXPECT_LE(most, 3 * pages * page_bytes + 1_MiB + file_system(pages));
  EXPECT_GT(writer.figures().cleaned, 0U);
  ASSERT_OK(writer.finish(all_pages(pages)));
  EXPECT_LE(allocated_bytes(log()), pages * page_bytes * 4 / 3 + file_system(pages));
  expect_holds(model);
}

TEST_P(ImagePageWriterTest, WhatIsWrittenAgainAndAgainTakesItsRoomOnce) {
  constexpr std::uint64_t pages = 4096, hot = 512;
  PageWriter writer = this->writer(pages);
  PageAppender appender = writer.appender();
  MemoryModel model;
  std::uint64_t most = 0;
  for (std::uint32_t round = 0; round < 12; ++round) {
    for (std::uint64_t number = 0; number < (round == 0 ? pages : hot); ++number) {
      model[number] = 1 + number + round * pages;
      ASSERT_OK(appender.put(PageNumber{number}, page_of(model[number]), Round{round}));
    }
    most = std::max(most, allocated_bytes(log()));
  }
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish(all_pages(pages)));
  EXPECT_LE(most, (pages + 2 * hot) * page_bytes + 4_MiB);  // what is on its way to the disk may be dead before it is there
  EXPECT_LE(allocated_bytes(log()), pages * page_bytes + 64_KiB);
  EXPECT_EQ(writer.figures().cleaned, 0U);  // whole extents died: nothing had to be written twice for that
  expect_holds(model);
}

TEST_P(ImagePageWriterTest, PagesThatAnotherHostOwnsAreDropped) {
  PageWriter writer = this->writer(1000);
  PageAppender appender = writer.appender();
  for (std::uint64_t number = 0; number < 1000; ++number)
    ASSERT_OK(appender.put(PageNumber{number}, page_of(number + 1), 0_round));
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish({{10_page, 20}, {500_page, 1}}));
  MemoryModel model;
  for (std::uint64_t number = 10; number < 30; ++number) model[number] = number + 1;
  model[500] = 501;
  expect_holds(model);
  EXPECT_LE(allocated_bytes(log()), 21 * page_bytes + 16_KiB);
}

TEST_P(ImagePageWriterTest, ADeltaHasOnlyWhatChanged) {
  PageWriter writer = this->writer(1000, cut_number(0));
  PageAppender appender = writer.appender();
  ASSERT_OK(appender.put(17_page, page_of(1), 0_round));
  ASSERT_OK(appender.put(800_page, page_of(2), 0_round));
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish(all_pages(500)));
  expect_holds({{17, 1}});
}

TEST_P(ImagePageWriterTest, AnOwnedPageThatWasNeverPutIsNamed) {
  auto writer = std::make_optional(this->writer(10));
  {
    PageAppender appender = writer->appender();
    for (const std::uint64_t number : {0, 1, 2, 4}) ASSERT_OK(appender.put(PageNumber{number}, page_of(9), 0_round));
    ASSERT_OK(appender.flush());
  }
  auto index = writer->finish(all_pages(5));
  ASSERT_FALSE(index);
  EXPECT_EQ(index.error().code, Errc::conflict);
  EXPECT_EQ(index.error().message, "part pages-h1: page 3 is owned, but has no record");
  writer.reset();
  EXPECT_TRUE(fs::is_empty(part()));
}

TEST_P(ImagePageWriterTest, AnAppenderThatWasNotFlushedIsNoticed) {
  PageWriter writer = this->writer(1);
  PageAppender appender = writer.appender();
  ASSERT_OK(appender.put(0_page, page_of(1), 0_round));
  auto index = writer.finish(all_pages(1));
  ASSERT_FALSE(index);
  EXPECT_EQ(index.error().code, Errc::conflict);
  EXPECT_FALSE(fs::exists(part() / "pages.index"));
  // There is no way on: the part is broken.
  EXPECT_FALSE(appender.flush());
  EXPECT_FALSE(writer.finish(all_pages(1)));
}

TEST_P(ImagePageWriterTest, WithoutFinishNothingStays) {
  {
    PageWriter writer = this->writer(10);
    PageAppender appender = writer.appender();
    ASSERT_OK(appender.put(0_page, page_of(1), 0_round));
    ASSERT_OK(appender.flush());
    EXPECT_TRUE(fs::exists(log()));
    PageWriter moved = std::move(writer);
  }
  EXPECT_TRUE(fs::is_empty(part()));
}

TEST_P(ImagePageWriterTest, WhatMakesNoSenseIsRefused) {
  const auto refusal = [&](const PageWriterOptions& options) {
    auto made = PageWriter::create(part(), options);
    return made ? Errc{} : made.error().code;
  };
  EXPECT_EQ(refusal({.guest_pages = 0, .cut = cut_number(1)}), Errc::invalid_argument);
  EXPECT_EQ(refusal({.guest_pages = max_guest_pages + 1, .cut = cut_number(1)}), Errc::invalid_argument);
  EXPECT_EQ(refusal({.guest_pages = 1}), Errc::invalid_argument);
  EXPECT_EQ(refusal({.guest_pages = 1, .cut = cut_number(1), .base_cut = cut_number(1)}), Errc::invalid_argument);
  EXPECT_TRUE(fs::is_empty(part()));

  PageWriter writer = this->writer(10);
  PageAppender appender = writer.appender();
  const Status put = appender.put(10_page, page_of(1), 0_round);
  ASSERT_FALSE(put);
  EXPECT_EQ(put.error().code, Errc::invalid_argument);
  EXPECT_EQ(appender.put_zeros(10_page, 0_round).error().code, Errc::invalid_argument);
  // A caller's mistake with one page does not break the part.
  EXPECT_TRUE(appender.put(9_page, page_of(1), 0_round));
  // Nobody else writes into the same directory, neither now nor when it is done.
  EXPECT_EQ(refusal({.guest_pages = 1, .cut = cut_number(1)}), Errc::already_exists);
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish({{9_page, 1}}));
  EXPECT_EQ(refusal({.guest_pages = 1, .cut = cut_number(1)}), Errc::already_exists);
  expect_holds({{9, 1}});
}

TEST_P(ImagePageWriterTest, ManyThreadsWriteOnePart) {
  constexpr std::uint64_t pages = 1024;
  constexpr std::uint32_t threads = 4, rounds = 6;
  PageWriter writer = this->writer(pages);
  // Round r of a page is put by thread (page + r) % threads, each thread in an order of its own: whoever comes last,
  // the contents of the last round must stand.
  const auto contents = [](std::uint64_t number, std::uint32_t round) -> std::uint64_t {
    if (number % 7 == 0) return 0;                       // zeros
    if (number % 5 == 0) return 1'000'000 + number % 3;  // duplicates among threads
    return 1 + number * rounds + round;
  };
  std::vector<std::jthread> running;
  std::array<Status, threads> results;
  for (std::uint32_t thread = 0; thread < threads; ++thread)
    running.emplace_back([&, thread] {
      PageAppender appender = writer.appender();
      std::vector<std::pair<std::uint64_t, std::uint32_t>> mine;
      for (std::uint64_t number = 0; number < pages; ++number)
        for (std::uint32_t round = 0; round < rounds; ++round)
          if ((number + round) % threads == thread) mine.emplace_back(number, round);
      std::ranges::shuffle(mine, std::mt19937(thread));
      for (const auto& [number, round] : mine)
        if (results[thread])
          results[thread] = appender.put(PageNumber{number}, page_of(contents(number, round)), Round{round});
      if (results[thread]) results[thread] = appender.flush();
    });
  running.clear();
  for (const Status& result : results) ASSERT_OK(result);
  ASSERT_OK(writer.finish(all_pages(pages)));
  MemoryModel model;
  for (std::uint64_t number = 0; number < pages; ++number) model[number] = contents(number, rounds - 1);
  expect_holds(model);
  EXPECT_EQ(writer.figures().puts, pages * rounds);
  EXPECT_GT(writer.figures().cleaned, 0U);
  EXPECT_LE(allocated_bytes(log()), pages * page_bytes * 4 / 3 + file_system(pages));
}

// What a guest writes while its page is saved: any mixture may be recorded, but it must fit its checksum.
TEST_P(ImagePageWriterTest, ThePageIsCopiedBeforeItsChecksumIsMade) {
  Page page = page_of(1);
  PageWriter writer = this->writer(64);
  PageAppender appender = writer.appender();
  for (std::uint64_t number = 0; number < 64; ++number) {
    ASSERT_OK(appender.put(PageNumber{number}, page, 0_round));
    page.fill(std::byte{0xff});  // what the caller had is his again
    page = page_of(number + 2);
  }
  ASSERT_OK(appender.flush());
  ASSERT_OK(writer.finish(all_pages(64)));
  EXPECT_TRUE(PagePart::open(part())->verify());
}

TEST_P(ImagePageWriterTest, WhatAKilledWriterLeavesIsRefused) {
  EXPECT_EQ(exit_code_of([&] {
              PageWriter writer = this->writer(600);
              PageAppender appender = writer.appender();
              for (std::uint64_t number = 0; number < 600; ++number)
                (void)appender.put(PageNumber{number}, page_of(number), 0_round);
              (void)appender.flush();
              ::raise(SIGKILL);
              return 0;
            }),
            1000 + SIGKILL);
  EXPECT_GE(fs::file_size(log()), 512 * page_bytes);
  auto opened = PagePart::open(part());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::corrupt);
}

TEST_P(ImagePageWriterTest, AWriteThatIsCutShortIsAnError) {
  EXPECT_EQ(exit_code_of([&] {
              ::signal(SIGXFSZ, SIG_IGN);
              const rlimit limit{1_MiB + 100 * page_bytes, 1_MiB + 100 * page_bytes};
              if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
              PageWriter writer = this->writer(600);
              PageAppender appender = writer.appender();
              Status put;
              for (std::uint64_t number = 0; put && number < 600; ++number)
                put = appender.put(PageNumber{number}, page_of(number + 1), 0_round);
              if (put) put = appender.flush();  // what was full is written meanwhile: the error may come with a later page, and comes with flush
              if (put || put.error().code != Errc::io) return 2;
              return writer.finish(all_pages(600)) ? 3 : 0;
            }),
            0);
  EXPECT_TRUE(fs::is_empty(part()));
}

// A tmpfs of 4 MiB is the full disk.
int fill_a_disk_with_pages(const fs::path& disk) {
  const fs::path part = disk / "pages-h1";
  fs::create_directory(part);
  const PageWriterOptions options{.guest_pages = 2000, .cut = cut_number(1)};
  {
    auto writer = PageWriter::create(part, options);
    if (!writer) return 1;
    PageAppender appender = writer->appender();
    PageAppender other = writer->appender();
    Status put;
    std::uint64_t number = 0;
    for (; put && number < 2000; ++number) put = appender.put(PageNumber{number}, page_of(number + 1), 0_round);
    if (put) put = appender.flush();  // a slow disk has only begun with what did not fit
    if (put || put.error().code != Errc::no_space) return 2;
    if (put.error().message.find("pages.log") == std::string::npos) return 3;
    // Everybody learns of it, and there is no index.
    Status later = other.put(0_page, page_of(1), 0_round);
    if (later || later.error().code != Errc::no_space) return 4;
    auto index = writer->finish({{0_page, number}});
    if (index || index.error().code != Errc::no_space) return 5;
    if (fs::exists(part / "pages.index")) return 6;
    if (PagePart::open(part)) return 7;
  }
  if (!fs::is_empty(part)) return 8;
  {
    // Room for the pages, which are zeros, none for the index.
    std::ofstream(disk / "ballast").write(std::string(4_MiB - 16_KiB, 'x').data(), 4_MiB - 16_KiB);
    auto writer = PageWriter::create(part, options);
    if (!writer) return 9;
    PageAppender appender = writer->appender();
    for (std::uint64_t number = 0; number < 2000; ++number)
      if (!appender.put_zeros(PageNumber{number}, 0_round)) return 10;
    auto index = writer->finish(all_pages(2000));
    if (index || index.error().code != Errc::no_space) return 11;
    if (fs::exists(part / "pages.index")) return 12;
  }
  if (!fs::is_empty(part)) return 13;
  // And when there is room again, it works.
  fs::remove(disk / "ballast");
  auto writer = PageWriter::create(part, options);
  if (!writer) return 14;
  PageAppender appender = writer->appender();
  if (!appender.put(0_page, page_of(1), 0_round) || !appender.flush() || !writer->finish({{0_page, 1}})) return 15;
  return PagePart::open(part) ? 0 : 16;
}

TEST(ImagePagesFullDiskTest, IsAnErrorAndLeavesNoPart) {
  TemporaryDirectory directory;
  const auto code = on_a_small_disk(directory.path(), "4m", [&] { return fill_a_disk_with_pages(directory.path()); });
  if (!code) GTEST_SKIP() << "needs the right to mount a tmpfs";
  EXPECT_EQ(code, 0);
}

}  // namespace
}  // namespace yado::image
