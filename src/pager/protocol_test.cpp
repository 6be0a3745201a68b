#include "pager/protocol.hpp"

#include <gtest/gtest.h>

#include <cstring>

namespace yado::pager {
namespace {

using HeaderSpan = std::span<const std::byte, header_bytes>;

HeaderSpan header_of(const std::vector<std::byte>& frame) { return HeaderSpan(frame.data(), header_bytes); }
Bytes body_of(const std::vector<std::byte>& frame) { return Bytes(frame).subspan(header_bytes); }

std::vector<std::byte> sample() { return make_frame(Operation::get, 7, make_batch(std::vector<KindRun>{{9000, 3}})); }

TEST(PageProtocolTest, TheGoldenFrameOfTheSpecification) {
  const auto frame = make_frame(Operation::list, 0x0102030405060708, make_number(5));
  const unsigned char golden[] = {0x59, 0x44, 0x50, 0x47, 1, 5, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 8, 0, 0, 0, 0, 0, 0, 0};
  ASSERT_EQ(frame.size(), header_bytes + 8);
  EXPECT_EQ(std::memcmp(frame.data(), golden, sizeof golden), 0);
}

TEST(PageProtocolTest, AFrameSurvivesItsWay) {
  const auto frame = sample();
  const auto header = parse_header(header_of(frame));
  ASSERT_TRUE(header) << header.error().text();
  EXPECT_EQ(header->operation, Operation::get);
  EXPECT_EQ(header->id, 7u);
  EXPECT_TRUE(check_frame(header_of(frame), body_of(frame)));
  const auto batch = parse_batch(body_of(frame), BatchUse::get);
  ASSERT_TRUE(batch);
  EXPECT_EQ(batch->runs, (std::vector<KindRun>{{9000, 3, PageKind::wanted}}));
}

TEST(PageProtocolTest, EveryFlippedBitIsSeen) {
  const auto frame = sample();
  for (std::size_t bit = 0; bit < frame.size() * 8; ++bit) {
    auto bad = frame;
    bad[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    const auto header = parse_header(header_of(bad));
    EXPECT_FALSE(header && header->body_bytes == body_of(bad).size() && check_frame(header_of(bad), body_of(bad)))
        << "bit " << bit;
  }
}

TEST(PageProtocolTest, AnOversizedBodyIsRefusedByItsHeaderAlone) {
  auto frame = sample();
  const auto size = static_cast<std::uint32_t>(most_body_bytes + 1);
  std::memcpy(frame.data() + 16, &size, sizeof size);
  const auto header = parse_header(header_of(frame));
  ASSERT_FALSE(header);
  EXPECT_EQ(header.error().code, Errc::corrupt);
  EXPECT_NE(header.error().message.find("GET with a body of 1179649 bytes"), std::string::npos) << header.error().message;
}

TEST(PageProtocolTest, AnotherVersionIsUnsupported) {
  auto frame = sample();
  frame[4] = std::byte{2};
  EXPECT_EQ(parse_header(header_of(frame)).error().code, Errc::unsupported);
}

TEST(PageProtocolTest, TheLargestFramesFit) {
  std::vector<KindRun> scattered;
  for (PageNumber page = 0; page < 2 * most_data_pages; page += 2) scattered.push_back({page, 1, PageKind::data});
  EXPECT_LE(make_batch(scattered).size() + most_data_pages * page_bytes, most_body_bytes);
  EXPECT_LE(make_batch(std::vector<KindRun>(most_runs)).size(), most_body_bytes);
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    text += fmt::format("{}{:02x}", i == 0 ? "" : i % 16 == 0 ? "\n" : i % 8 == 0 ? "  " : " ", static_cast<unsigned>(bytes[i]));
  return text;
}

// The golden frames of docs/formats/page_protocol.md.
TEST(PageProtocolTest, GoldenFrames) {
  image::CutId cut, base;
  std::memcpy(cut.bytes.data(), "cut-0123456789ab", 16);
  std::memcpy(base.bytes.data(), "cut-ba9876543210", 16);
  EXPECT_EQ(hex(make_frame(Operation::hello, 1, make_hello({3, 4, 524288, 131072, Role::owner, "bigvm.2"}))), R"(59 44 50 47 01 01 00 00  01 00 00 00 00 00 00 00
33 00 00 00 00 00 00 00  27 bf 42 21 27 29 18 fa
03 00 00 00 00 00 00 00  04 00 00 00 00 00 00 00
00 00 08 00 00 00 00 00  00 00 02 00 00 00 00 00
00 10 00 00 01 00 00 00  07 00 00 00 62 69 67 76
6d 2e 32)");
  EXPECT_EQ(hex(make_frame(Operation::save, 10, make_save({"image-1", cut, base}), flag_first)), R"(59 44 50 47 01 07 01 00  0a 00 00 00 00 00 00 00
2b 00 00 00 00 00 00 00  bd 66 79 60 24 79 41 e4
07 00 00 00 69 6d 61 67  65 2d 31 63 75 74 2d 30
31 32 33 34 35 36 37 38  39 61 62 63 75 74 2d 62
61 39 38 37 36 35 34 33  32 31 30)");
  EXPECT_EQ(hex(make_frame(Operation::finish, 12, make_finish({{{0, 100, PageKind::wanted}}, "image-1"}), flag_more)), R"(59 44 50 47 01 0c 01 00  0c 00 00 00 00 00 00 00
23 00 00 00 00 00 00 00  85 62 7f ce 66 6f 0b 8d
01 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00
64 00 00 00 00 00 00 00  07 00 00 00 69 6d 61 67
65 2d 31)");
}

TEST(PageProtocolTest, RequestsOfACheckpointSurviveTheirWay) {
  const SaveRequest save{"image-1", image::CutId::of("a"), image::CutId::of("b")};
  EXPECT_EQ(parse_save(make_save(save))->base, save.base);
  EXPECT_EQ(parse_save(make_save(save))->base_name, "");
  EXPECT_EQ(parse_save(make_save({"image-1", save.cut, save.base, "image-0"}))->base_name, "image-0");
  const SaveRequest limited{"image-1", save.cut, save.base, "image-0", 50'000'000};
  EXPECT_EQ(flags_of(limited), 3);
  EXPECT_EQ(parse_save(make_save(limited), true)->bytes_per_second, 50'000'000u);
  const auto read_header = [](Operation operation, std::uint16_t flags) {
    const auto frame = make_frame(operation, 1, {}, flags);
    return parse_header(std::span<const std::byte, header_bytes>(frame.data(), header_bytes)).has_value();
  };
  EXPECT_TRUE(read_header(Operation::save, flags_of(limited)));
  EXPECT_FALSE(read_header(Operation::save, flag_limited)) << "only a draft that begins has a rate";
  EXPECT_FALSE(read_header(Operation::put, 3));
  EXPECT_EQ(parse_save(make_save(limited), true)->base_name, "image-0");
  auto zero = make_save(limited);
  std::fill_n(zero.begin(), 8, std::byte{0});
  EXPECT_FALSE(parse_save(zero, true)) << "a rate of nothing";
  auto unnamed = make_save(save);
  unnamed.resize(unnamed.size() + sizeof(std::uint32_t));
  EXPECT_FALSE(parse_save(unnamed)) << "a base's name of no letters: absent is said by leaving it out";
  EXPECT_FALSE(parse_save(make_save({"image-1", save.cut, {}, "image-0"}))) << "the name of a base that is not there";
  EXPECT_FALSE(parse_save(make_save({"", save.cut, save.base}))) << "no name";
  EXPECT_FALSE(parse_save(make_save({"image-1", {}, save.base}))) << "no cut";
  EXPECT_FALSE(parse_save(make_save({"image-1", save.cut, save.cut}))) << "its own base";
  const std::vector<KindRun> runs{{0, 100'000, PageKind::wanted}, {200'000, 1, PageKind::wanted}};
  EXPECT_EQ(parse_finish(make_finish({runs, "image-1"}))->owned, runs);
  EXPECT_EQ(parse_load(make_load({runs, {"a", "b"}}))->names, (std::vector<std::string>{"a", "b"}));
  EXPECT_FALSE(parse_load(make_load({runs, {}})));
  EXPECT_FALSE(parse_load(make_load({runs, std::vector<std::string>(17, "a")})));
  EXPECT_FALSE(parse_load(make_load({runs, {"a", ""}})));
  const auto move = parse_move(make_move({runs, {.address = "10.0.0.2", .port = 7001, .expected_peer = "agent:h2"}, 9}));
  ASSERT_TRUE(move);
  EXPECT_EQ(move->to.text(), "10.0.0.2:7001");
  EXPECT_EQ(move->instance, 9u);
  EXPECT_FALSE(parse_move(make_move({runs, {}, 9}))) << "to nobody";
  EXPECT_EQ(parse_saved(make_saved({7, 8}))->bytes, 8u);
}

TEST(PageProtocolTest, BadBatchesAreRefused) {
  const auto put = [](std::vector<KindRun> runs, std::size_t pages_of_data) {
    auto body = make_batch(runs);
    body.resize(body.size() + pages_of_data * page_bytes);
    return parse_batch(body, BatchUse::put).has_value();
  };
  const auto data = PageKind::data, zero = PageKind::zero;
  EXPECT_TRUE(put({{5, 2, data}, {7, 1, zero}, {8, 1, data}}, 3));
  EXPECT_TRUE(put({}, 0));
  EXPECT_FALSE(put({{5, 2, data}}, 1)) << "data cut";
  EXPECT_FALSE(put({{5, 2, data}}, 3)) << "data too long";
  EXPECT_FALSE(put({{5, 0, data}}, 0)) << "empty run";
  EXPECT_FALSE(put({{5, 2, data}, {6, 1, data}}, 3)) << "overlap";
  EXPECT_FALSE(put({{7, 1, data}, {5, 1, data}}, 2)) << "order";
  EXPECT_FALSE(put({{5, 1, PageKind::wanted}}, 0)) << "kind of a request for data";
  EXPECT_FALSE(put({{5, 1, PageKind::absent}}, 0)) << "kind of an answer";
  EXPECT_FALSE(put({{5, 1, static_cast<PageKind>(77)}}, 0)) << "unknown kind";
  EXPECT_FALSE(put({{0, 257, zero}}, 0)) << "too many pages";
  EXPECT_FALSE(put({{~0ull, 2, zero}}, 0)) << "overflow";
  EXPECT_FALSE(put({{most_page_number - 1, 2, zero}}, 0)) << "beyond every memory";
  EXPECT_FALSE(parse_batch(Bytes{}, BatchUse::get));
  const auto body = make_batch(std::vector<KindRun>{{1, 1}});
  EXPECT_FALSE(parse_batch(Bytes(body).first(body.size() - 1), BatchUse::get)) << "run cut";
}

TEST(PageProtocolTest, DropAndListingMayNameManyPages) {
  const auto drop = make_batch(std::vector<KindRun>{{0, 1'000'000, PageKind::wanted}});
  EXPECT_TRUE(parse_batch(drop, BatchUse::drop));
  EXPECT_FALSE(parse_batch(drop, BatchUse::get));
  EXPECT_TRUE(parse_batch(make_batch(std::vector<KindRun>{{0, 1'000'000, PageKind::data}}), BatchUse::listing));
}

TEST(PageProtocolTest, ValuesSurviveTheirWay) {
  const Hello hello{3, 4, 1000, 500, Role::owner, "bigvm.2"};
  EXPECT_EQ(parse_hello(make_hello(hello)).value(), hello);
  Hello heir = hello;
  heir.from = 2;
  for (const Role role : {Role::heir, Role::reader}) {
    heir.role = role;
    EXPECT_EQ(parse_hello(make_hello(heir)).value(), heir);
  }
  heir.role = static_cast<Role>(5);
  EXPECT_FALSE(parse_hello(make_hello(heir)));
  EXPECT_EQ(parse_welcome(make_welcome({9, 10}))->held_pages, 10u);
  EXPECT_EQ(parse_stats(make_stats({1, 2, 3, 4, 5, 6}))->gets, 6u);
  EXPECT_EQ(parse_stats(make_stats({1, 2, 3, 4, 5, 6, 7, 8, 9}))->pending_pages, 9u);
  EXPECT_EQ(parse_name(make_name("part-1")).value(), "part-1");
  const Error error = parse_error(make_error({Errc::no_space, "full\x1b[2J"}));
  EXPECT_EQ(error.code, Errc::no_space);
  EXPECT_EQ(error.message, "full?[2J");
  auto cut = make_hello(hello);
  cut.pop_back();
  EXPECT_FALSE(parse_hello(cut));
  EXPECT_EQ(parse_error(cut).code, Errc::corrupt);
}

TEST(PageTest, RunsAndZeroes) {
  EXPECT_EQ(runs_of(std::vector<PageNumber>{1, 2, 3, 7, 8}), (std::vector<PageRun>{{1, 3}, {7, 2}}));
  std::array<std::byte, page_bytes> page{};
  EXPECT_TRUE(is_zero(page));
  for (const std::size_t at : {std::size_t{0}, std::size_t{8}, page_bytes - 1}) {
    page[at] = std::byte{1};
    EXPECT_FALSE(is_zero(page)) << at;
    page[at] = std::byte{0};
  }
}

}  // namespace
}  // namespace yado::pager
