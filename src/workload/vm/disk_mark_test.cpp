#include "workload/vm/disk_mark.hpp"

#include <gtest/gtest.h>

#include "image/temporary_directory.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using Counts = std::vector<std::size_t>;

class DiskMarkTest : public ::testing::Test {
 protected:
  void layer(const std::string& name) const { image::put_file(path() / name, "x"); }
  const fs::path& path() const { return directory_.path(); }
  std::optional<Counts> counts(const DiskMark& mark, std::size_t disks = 1) const { return below(mark, path(), disks); }

 private:
  image::TemporaryDirectory directory_;
};

TEST_F(DiskMarkTest, SaysWhatAnImageHas) {
  for (const char* name : {"disk-0.qcow2", "disk-0.2.qcow2", "disk-1.7.qcow2"}) layer(name);
  const auto mark = mark_now(path(), 2, "c1");
  ASSERT_TRUE(mark) << mark.error().text();
  EXPECT_EQ(*mark, (DiskMark{"c1", {"disk-0.2.qcow2", "disk-1.7.qcow2"}}));
  layer("disk-0.3.qcow2");
  EXPECT_EQ(counts(*mark, 2), (Counts{1, 0}));
  EXPECT_EQ(mark_now(path(), 3, "c2").error().code, Errc::not_found);
}

TEST_F(DiskMarkTest, OfOtherDisksItSaysNothing) {
  for (const char* name : {"disk-0.qcow2", "disk-0.2.qcow2", "disk-0.3.qcow2"}) layer(name);
  EXPECT_EQ(counts({"c", {"disk-0.2.qcow2"}}), Counts{1});
  EXPECT_EQ(counts({"c", {"disk-0.2.qcow2"}}, 2), std::nullopt);
  EXPECT_EQ(counts({"c", {"disk-0.4.qcow2"}}), std::nullopt);
  fs::remove(path() / "disk-0.2.qcow2");  // merged into the first
  EXPECT_EQ(counts({"c", {"disk-0.2.qcow2"}}), std::nullopt);
}

TEST_F(DiskMarkTest, IsReadAsItWasWrittenOrNotAtAll) {
  EXPECT_EQ(read_mark(path()), std::nullopt);
  for (const DiskMark& mark : {DiskMark{"c1", {"disk-0.qcow2", "disk-1.qcow2"}}, DiskMark{"c2", {"disk-0.5.qcow2"}}}) {
    ASSERT_TRUE(write_mark(path(), mark));
    EXPECT_EQ(read_mark(path()), mark);
  }
  ASSERT_TRUE(forget_mark(path()));
  EXPECT_EQ(read_mark(path()), std::nullopt);
  EXPECT_TRUE(forget_mark(path()));
  image::put_file(path() / "disks-in-image", "");
  EXPECT_EQ(read_mark(path()), std::nullopt);
}

}  // namespace
}  // namespace yado::vm
