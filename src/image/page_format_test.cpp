// What lies on the disk: the bytes of docs/formats/pages.md, and what is refused.

#include <gmock/gmock.h>

#include <functional>

#include "image/checksum.hpp"
#include "image/page_testing.hpp"
#include "image/sealed.hpp"
#include "image/temporary_directory.hpp"
#include "image/working_set.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::Eq;
using ::testing::HasSubstr;

// The golden example of the document.
Result<PageIndex> write_golden(const fs::path& part) {
  CutId cut;
  std::memcpy(cut.bytes.data(), "cut-0123456789ab", 16);
  YADO_ASSIGN(PageWriter writer, PageWriter::create(part, {.guest_pages = 6, .cut = cut}), "golden");
  PageAppender appender = writer.appender();
  for (const auto& [page, c, round] :
       std::initializer_list<std::tuple<PageNumber, char, Round>>{{0_page, 'a', 0_round},
                                                                  {2_page, 'b', 0_round},
                                                                  {3_page, 'a', 0_round},
                                                                  {4_page, 'c', 0_round},
                                                                  {4_page, 'd', 1_round}})
    YADO_TRY(appender.put(page, filled(c), round), "golden");
  YADO_TRY(appender.put_zeros(1_page, 0_round), "golden");
  YADO_TRY(appender.flush(), "golden");
  return writer.finish({{0_page, 5}});
}

std::string golden_index() {
  TemporaryDirectory directory;
  const fs::path part = new_part(directory.path(), "pages-h1");
  EXPECT_TRUE(write_golden(part));
  return read_file(part / "pages.index");
}

std::string hex(std::string_view bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    text += fmt::format("{}{:02x}", i % 16 == 0 ? "\n" : i % 8 == 0 ? "  " : " ", static_cast<unsigned char>(bytes[i]));
  return text + "\n";
}

constexpr std::string_view golden =
    R"(
79 61 64 6f 70 61 67 65  01 00 00 00 00 10 00 00
63 75 74 2d 30 31 32 33  34 35 36 37 38 39 61 62
00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
06 00 00 00 00 00 00 00  04 00 00 00 00 00 00 00
01 00 00 00 00 00 00 00  01 00 00 00 00 00 00 00
05 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
05 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
05 00 00 00 00 00 00 00  1e 70 19 e9 70 06 a3 88
ba 89 c6 48 e1 6f d7 93  09 4e 6c 06 f8 04 f7 0d
1e 70 19 e9 70 06 a3 88  1d 3e 0c d8 66 61 01 b9
00 00 00 00 ff ff ff ff  01 00 00 00 00 00 00 00
03 00 00 00 a0 8d 50 b3  29 5c 68 2d 5d c3 8c fc
97 74 08 60
)";

TEST(ImagePageFormatTest, TheGoldenExampleIsWrittenByteForByte) {
  TemporaryDirectory directory;
  const fs::path part = new_part(directory.path(), "pages-h1");
  ASSERT_OK(write_golden(part));
  EXPECT_EQ(hex(read_file(part / "pages.index")), golden);
  const std::string log = read_file(part / "pages.log");
  EXPECT_EQ(log, std::string(4096, 'a') + std::string(4096, 'b') + std::string(4096, 'c') + std::string(4096, 'd'));
}

TEST(ImagePageFormatTest, ChecksumsAreXxh3) {
  // From the reference implementation's command: head -c 4096 /dev/zero | xxhsum -H3, and the same of 4096 times 'a'.
  EXPECT_EQ(fmt::format("{:016x}", checksum_of_zeros()), "93d76fe148c689ba");
  EXPECT_EQ(fmt::format("{:016x}", checksum_of(filled('a'))), "88a30670e919701e");
}

TEST(ImagePageFormatTest, AnIndexIsReadAsItWasWritten) {
  const std::string bytes = golden_index();
  auto index = PageIndex::from_bytes(bytes);
  ASSERT_TRUE(index) << index.error().text();
  EXPECT_EQ(index->to_bytes(), bytes);
  EXPECT_EQ(index->records(), 5U);
  EXPECT_EQ(index->log_slots(), 4U);
  EXPECT_TRUE(index->find(1_page)->zero());
  EXPECT_EQ(index->find(4_page)->slot, 3U);
  EXPECT_EQ(index->find(5_page), std::nullopt);
}

TEST(ImagePageFormatTest, EveryFlippedBitOfTheIndexIsSeen) {
  const std::string bytes = golden_index();
  for (std::size_t byte = 0; byte < bytes.size(); ++byte)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[byte] = static_cast<char>(damaged[byte] ^ (1 << bit));
      auto index = PageIndex::from_bytes(damaged);
      ASSERT_FALSE(index) << "byte " << byte << " bit " << bit;
      EXPECT_THAT(index.error().code, AnyOf(Errc::corrupt, Errc::unsupported));
      EXPECT_FALSE(index.error().message.empty());
    }
}

TEST(ImagePageFormatTest, EveryTruncationOfTheIndexIsSeen) {
  const std::string bytes = golden_index();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    auto index = PageIndex::from_bytes(bytes.substr(0, length));
    ASSERT_FALSE(index) << length;
    EXPECT_EQ(index.error().code, Errc::corrupt);
  }
  EXPECT_FALSE(PageIndex::from_bytes(bytes + std::string(12, '\0')));
}

// An index with a change and the seal that belongs to it: what a peer could send.
class Forgery {
 public:
  explicit Forgery(std::string bytes = golden_index()) : bytes_(std::move(bytes)) {
    bytes_.resize(bytes_.size() - sizeof(Seal));
  }
  template <class T>
  Forgery& put(std::size_t offset, T value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof value);
    return *this;
  }
  Forgery& append(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }
  std::string refusal() const {
    std::string sealed = bytes_;
    append_seal(sealed);
    auto index = PageIndex::from_bytes(sealed);
    if (index) return "(accepted)";
    EXPECT_THAT(index.error().code, AnyOf(Errc::corrupt, Errc::unsupported));
    return index.error().message;
  }

 private:
  std::string bytes_;
};

// Offsets in the golden index: one owned range, one run, five records.
constexpr std::size_t at_owned = 88, at_run = 104, at_checksums = 120, at_slots = 160;

TEST(ImagePageFormatTest, ASealedLieIsRefusedToo) {
  using u32 = std::uint32_t;
  using u64 = std::uint64_t;
  EXPECT_EQ(Forgery().refusal(), "(accepted)");
  EXPECT_EQ(Forgery().put<char>(0, 'Y').refusal(), "no index of pages");
  EXPECT_EQ(Forgery().put<u32>(8, 2).refusal(), "version 2: this yado reads version 1");
  EXPECT_EQ(Forgery().put<u32>(12, 65536).refusal(), "pages of 65536 bytes");
  EXPECT_EQ(Forgery().put(16, CutId{}).refusal(), "the cut has no name");
  EXPECT_THAT(Forgery().put<u64>(48, 0).refusal(), HasSubstr("a guest of 0 pages"));
  EXPECT_THAT(Forgery().put<u64>(48, ~0ULL).refusal(), HasSubstr("a guest of"));
  EXPECT_THAT(Forgery().put<u64>(48, 4).refusal(), HasSubstr("not in order"));
  EXPECT_EQ(Forgery().put<u64>(56, 5).refusal(), "a log of 5 slots, of which 4 are used");
  for (const std::size_t count : {64, 72, 80})
    for (const u64 lie : {u64{0}, u64{2}, u64{1} << 60, ~u64{0} / 12, ~u64{0}})
      EXPECT_THAT(Forgery().put(count, lie).refusal(), AnyOf(HasSubstr("bytes instead of"), HasSubstr("counts")));
  EXPECT_EQ(Forgery().put<u64>(at_owned + 8, 4).refusal(), "page 4 has a record, but is not owned");
  EXPECT_EQ(Forgery().put<u64>(at_owned + 8, 6).refusal(), "page 5 is owned, but has no record");
  EXPECT_EQ(Forgery().put<u64>(at_owned + 8, 7).refusal(), "the owned ranges are not in order");
  EXPECT_EQ(Forgery().put<u64>(at_owned + 8, 0).refusal(), "the owned ranges are not in order");
  EXPECT_EQ(Forgery().put<u64>(at_owned + 8, ~0ULL).refusal(), "the owned ranges are not in order");
  EXPECT_EQ(Forgery().put<u64>(at_run, 6).refusal(), "the runs of records are not in order");
  EXPECT_EQ(Forgery().put<u64>(at_run, ~0ULL - 2).refusal(), "the runs of records are not in order");
  // A delta whose run is shorter than its records.
  EXPECT_EQ(Forgery().put(32, cut_number(1)).put<u64>(at_run + 8, 3).refusal(), "5 records for 3 pages");
  EXPECT_EQ(Forgery().put<u64>(at_checksums + 8, 1).refusal(), "record 1: zeros with the checksum of something else");
  EXPECT_EQ(Forgery().put<u32>(at_slots + 16, 4).refusal(), "a log of 4 slots, of which 5 are used");
}

TEST(ImagePageFormatTest, ThereIsOneWayToWriteARun) {
  // Two runs that touch: [0,2) and [2,5).
  std::string bytes = golden_index();
  const std::string run(reinterpret_cast<const char*>(std::array<std::uint64_t, 4>{0, 2, 2, 3}.data()), 32);
  bytes.replace(at_run, 16, run);
  EXPECT_EQ(Forgery(bytes).put<std::uint64_t>(72, 2).put(32, cut_number(1)).refusal(),
            "the runs of records are not in order");
}

TEST(ImagePageFormatTest, APageSetHasOneForm) {
  const PageSet set = normalised({{7_page, 3}, {0_page, 2}, {2_page, 1}, {5_page, 0}, {8_page, 1}, {20_page, 1}});
  EXPECT_EQ(set, (PageSet{{0_page, 3}, {7_page, 3}, {20_page, 1}}));
  EXPECT_EQ(count_of(set), 7U);
  EXPECT_TRUE(well_formed(set, 21));
  EXPECT_FALSE(well_formed(set, 20));
  EXPECT_FALSE(well_formed({{0_page, 1}, {1_page, 1}}, 9));
  EXPECT_FALSE(well_formed({{5_page, 1}, {1_page, 1}}, 9));
  EXPECT_FALSE(well_formed({{1_page, ~0ULL}}, 9));
  for (const std::uint64_t page : {0, 2, 7, 9, 20}) EXPECT_TRUE(contains(set, PageNumber{page})) << page;
  for (const std::uint64_t page : {3, 6, 10, 19, 21}) EXPECT_FALSE(contains(set, PageNumber{page})) << page;
}

class ImagePagePartTest : public ::testing::Test {
 protected:
  ImagePagePartTest() : part_(new_part(directory_.path(), "pages-h1")) { EXPECT_TRUE(write_golden(part_)); }
  std::string refusal() const {
    auto opened = PagePart::open(part_);
    if (opened) return "(opened)";
    EXPECT_EQ(opened.error().code, Errc::corrupt);
    return opened.error().message;
  }
  TemporaryDirectory directory_;
  fs::path part_;
};

TEST_F(ImagePagePartTest, EveryFlippedBitOfAPageIsSeenAndThePageNamed) {
  for (const std::uint64_t byte : {0U, 1U, 4095U, 4096U, 8191U, 12288U, 16383U})
    for (int bit = 0; bit < 8; ++bit) {
      flip_bit(part_ / "pages.log", byte, bit);
      auto opened = PagePart::open(part_);
      ASSERT_TRUE(opened);
      const Status verified = opened->verify();
      ASSERT_FALSE(verified) << byte;
      EXPECT_EQ(verified.error().code, Errc::corrupt);
      const std::uint64_t page = std::array{0, 2, -1, 4}[byte / page_bytes];
      EXPECT_EQ(verified.error().message, fmt::format("part pages-h1: page {} (pages.log offset {}): checksum differs",
                                                      page, byte / page_bytes * page_bytes));
      Page contents;
      EXPECT_EQ(opened->read(PageNumber{page}, contents).error().message, verified.error().message);
      EXPECT_TRUE(opened->read(1_page, contents));  // the others are what they were
      flip_bit(part_ / "pages.log", byte, bit);
      EXPECT_TRUE(opened->verify());
    }
}

/// As rot is: the file's times say nothing of it, until somebody reads that page.
TEST_F(ImagePagePartTest, WhoReadsADamagedPageChangesTheTimeOfItsLog) {
  const fs::path log = part_ / "pages.log";
  flip_bit(log, 4096, 3);
  const auto written = fs::last_write_time(log) - std::chrono::hours(1);
  fs::last_write_time(log, written);
  auto opened = PagePart::open(part_);
  ASSERT_TRUE(opened);
  Page contents;
  EXPECT_TRUE(opened->read(1_page, contents));
  EXPECT_EQ(fs::last_write_time(log), written);
  EXPECT_FALSE(opened->read(2_page, contents));
  EXPECT_GT(fs::last_write_time(log), written);
}

TEST_F(ImagePagePartTest, ALogWithoutAnIndexIsNoPart) {
  fs::remove(part_ / "pages.index");
  EXPECT_EQ(refusal(), "part pages-h1: pages.index is missing: the part was not finished");
}

TEST_F(ImagePagePartTest, AnIndexThatWasCutIsNoPart) {
  for (std::uint64_t length : {195U, 100U, 1U, 0U}) {
    fs::resize_file(part_ / "pages.index", length);
    EXPECT_THAT(refusal(), HasSubstr("part pages-h1: pages.index: "));
  }
}

TEST_F(ImagePagePartTest, ALogOfAnotherLengthIsRefused) {
  fs::resize_file(part_ / "pages.log", 4 * page_bytes + 1);
  EXPECT_EQ(refusal(), "part pages-h1: pages.log: 16385 bytes instead of 16384");
  fs::resize_file(part_ / "pages.log", 3 * page_bytes);
  EXPECT_EQ(refusal(), "part pages-h1: pages.log: 12288 bytes instead of 16384");
  fs::remove(part_ / "pages.log");
  auto opened = PagePart::open(part_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::not_found);
}

TEST_F(ImagePagePartTest, ALogThatShrinksUnderItsReaderIsAnError) {
  auto opened = PagePart::open(part_);
  ASSERT_TRUE(opened);
  fs::resize_file(part_ / "pages.log", 3 * page_bytes);
  Page contents;
  const Status read = opened->read(4_page, contents);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().message, "part pages-h1: page 4 (pages.log offset 12288): the log became shorter");
}

TEST_F(ImagePagePartTest, FilesBehindLinksAreNotFollowed) {
  fs::rename(part_ / "pages.log", directory_.path() / "elsewhere");
  fs::create_symlink(directory_.path() / "elsewhere", part_ / "pages.log");
  EXPECT_FALSE(PagePart::open(part_));
}

TEST_F(ImagePagePartTest, WithoutItsLogThePlacesAreKnown) {
  fs::remove(part_ / "pages.log");
  auto opened = PagePart::open(part_, PagePart::Log::elsewhere);
  ASSERT_TRUE(opened) << opened.error().text();
  EXPECT_FALSE(opened->has_log());
  EXPECT_EQ(opened->index().find(4_page)->log_offset(), 3 * page_bytes);
  Page contents;
  const Status read = opened->read(4_page, contents);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::unavailable);
  EXPECT_TRUE(opened->read(1_page, contents));  // zeros are nowhere
}

TEST_F(ImagePagePartTest, AVisitorsErrorEndsTheScan) {
  auto opened = PagePart::open(part_);
  ASSERT_TRUE(opened);
  int visits = 0;
  const Status scanned = opened->scan(opened->in_file_order(), [&](PageNumber, std::optional<PageContents>) -> Status {
    if (++visits == 2) return fail(Errc::canceled, "enough");
    return {};
  });
  ASSERT_FALSE(scanned);
  EXPECT_EQ(scanned.error().message, "enough");
  EXPECT_EQ(visits, 2);
}

TEST(ImageWorkingSetTest, IsReadAsItWasWritten) {
  TemporaryDirectory directory;
  EXPECT_EQ(read_working_set(directory.path()).error().code, Errc::not_found);
  const WorkingSet working_set{100, {17_page, 3_page, 99_page, 17_page, 0_page}};
  ASSERT_OK(write_working_set(directory.path(), working_set));
  EXPECT_EQ(read_working_set(directory.path()), working_set);
  EXPECT_EQ(checksum_of(read_file(directory.path() / "working-set")), "09c01866c141dd37ea27ebca336fa8ea");
  EXPECT_EQ(write_working_set(directory.path(), working_set).error().code, Errc::already_exists);
}

TEST(ImageWorkingSetTest, DamageAndNonsenseAreRefused) {
  const std::string bytes = to_bytes({100, {17_page, 3_page}});
  for (std::size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(working_set_from_bytes(bytes.substr(0, length))) << length;
  for (std::size_t byte = 0; byte < bytes.size(); ++byte)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[byte] = static_cast<char>(damaged[byte] ^ (1 << bit));
      EXPECT_FALSE(working_set_from_bytes(damaged)) << byte;
    }
  EXPECT_FALSE(working_set_from_bytes(to_bytes({100, {100_page}})));
  EXPECT_FALSE(working_set_from_bytes(to_bytes({1, {0_page, 0_page}})));
  TemporaryDirectory directory;
  EXPECT_EQ(write_working_set(directory.path(), {100, {100_page}}).error().code, Errc::invalid_argument);
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

}  // namespace
}  // namespace yado::image
