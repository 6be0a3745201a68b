#include "pager/changed_pages.hpp"

#include <filesystem>

#include "base/testing.hpp"
#include "image/temporary_directory.hpp"
#include "os/file.hpp"

namespace yado::pager {
namespace {

TEST(ChangedPagesTest, WhatIsLeftIsFound) {
  const image::TemporaryDirectory directory;
  constexpr std::uint64_t pages = 1000;
  ChangedPages changed{image::CutId::of("a-img.1"), PageBits(pages)};
  for (const PageNumber page : {0u, 63u, 64u, 999u}) changed.pages.set(page);
  ASSERT_OK(write_changed_pages(directory.path(), changed));
  const auto found = read_changed_pages(directory.path(), pages);
  ASSERT_OK(found);
  EXPECT_EQ(found->since, changed.since);
  EXPECT_EQ(found->pages.count(), 4u);
  EXPECT_EQ(found->pages.count(changed.pages), 4u);
}

TEST(ChangedPagesTest, WhatIsNotAllThereIsNotUsed) {
  const image::TemporaryDirectory directory;
  EXPECT_EQ(read_changed_pages(directory.path(), 1000).error().code, Errc::not_found);
  ASSERT_OK(write_changed_pages(directory.path(), {image::CutId::of("a-img.1"), PageBits(1000)}));
  EXPECT_EQ(read_changed_pages(directory.path(), 1001).error().code, Errc::corrupt) << "as many words, and another memory";
  const auto file = directory.path() / "changed-pages";
  for (auto length = std::filesystem::file_size(file); length-- > 0;) {
    std::filesystem::resize_file(file, length);
    EXPECT_EQ(read_changed_pages(directory.path(), 1000).error().code, Errc::corrupt) << length;
  }
  ASSERT_OK(write_changed_pages(directory.path(), {image::CutId{}, PageBits(1000)}));
  EXPECT_EQ(read_changed_pages(directory.path(), 1000).error().code, Errc::corrupt) << "since no image";
}

}  // namespace
}  // namespace yado::pager
