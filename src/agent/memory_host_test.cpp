#include "agent/memory_host.hpp"

#include <gtest/gtest.h>

#include "image/page_writer.hpp"
#include "image/temporary_directory.hpp"

namespace yado::agent {
namespace {

constexpr std::uint64_t guest_pages = 4;

class MemoryArchiveTest : public ::testing::Test {
 protected:
  MemoryArchiveTest() : store_(std::move(*image::Store::open(directory_.path() / "images"))) {}
  /// What a memory server's SAVE … KEEP does; what the share is known by.
  Result<std::string> save(const std::string& name, const std::string& base, const image::CutId& base_cut = {}) {
    YADO_ASSIGN(const auto part, archive_.begin("bigvm", name, base), "test");
    YADO_ASSIGN(image::PageWriter writer,
                image::PageWriter::create(part, {.guest_pages = guest_pages, .cut = image::CutId::of(name), .base_cut = base_cut}), "test");
    {
      image::PageAppender appender = writer.appender();
      YADO_TRY(appender.put_zeros(image::PageNumber{1}, image::Round{0}), "test");
      YADO_TRY(appender.flush(), "test");
    }
    YADO_ASSIGN(const image::PageIndex index, writer.finish({{image::PageNumber{1}, 1}}), "test");
    return archive_.keep("bigvm", name, index);
  }

  image::TemporaryDirectory directory_;
  image::Store store_;
  std::vector<image::Manifest> added_;
  MemoryArchive archive_{store_, [this](image::Manifest one) { added_.push_back(std::move(one)); }};
};

TEST_F(MemoryArchiveTest, AShareOfADeltaNamesTheMainImagesBaseAndProtectsItsOwnShareOfThat) {
  ASSERT_TRUE(save("bigvm-img.1.h2", ""));
  const auto sum = save("bigvm-img.2.h2", "bigvm-img.1", image::CutId::of("bigvm-img.1.h2"));
  ASSERT_TRUE(sum) << sum.error().text();
  const auto share = store_.read(ImageId("bigvm-img.2.h2"));
  ASSERT_TRUE(share) << share.error().text();
  EXPECT_EQ(share->member_of, ImageId("bigvm-img.2"));
  EXPECT_EQ(share->base, ImageId("bigvm-img.1"));
  EXPECT_EQ(image::checksum_of_manifest(*share), *sum);
  ASSERT_EQ(added_.size(), 2U);
  EXPECT_FALSE(added_[0].base);
  const Status gone = store_.remove(ImageId("bigvm-img.1.h2"));
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, Errc::conflict);
}

TEST_F(MemoryArchiveTest, NamesOfOthersAreRefused) {
  for (const char* base : {"other-img.1", "../bigvm-img.1", "bigvm"}) {
    const auto saved = save("bigvm-img.2.h2", base, image::CutId::of(base));
    ASSERT_FALSE(saved) << base;
    EXPECT_EQ(saved.error().code, Errc::permission) << saved.error().text();
  }
  EXPECT_TRUE(store_.list().empty());
}

}  // namespace
}  // namespace yado::agent
