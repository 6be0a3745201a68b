#include "workload/vm/disk.hpp"

#include <csignal>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "base/units.hpp"
#include "image/temporary_directory.hpp"
#include "os/file.hpp"
#include "workload/vm/memory_part.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;


class DiskTest : public ::testing::Test {
 protected:
  fs::path path(const std::string& name) const { return directory_.path() / name; }
  os::Fd make(const std::string& name, std::uint64_t bytes) {
    auto file = os::open_path(path(name), O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT_TRUE(file.has_value());
    EXPECT_EQ(::ftruncate(file->get(), static_cast<off_t>(bytes)), 0);
    return std::move(*file);
  }
  static void put(const os::Fd& file, off_t at, std::string_view text) {
    ASSERT_EQ(::pwrite(file.get(), text.data(), text.size(), at), static_cast<ssize_t>(text.size()));
  }
  std::string content(const std::string& name) const { return os::read_text(path(name)).value_or(""); }
  std::uint64_t room(const std::string& name) const {
    struct stat status {};
    EXPECT_EQ(::stat(path(name).c_str(), &status), 0);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  static bool has_qemu_img() { return ::access(Qemu().image_tool.c_str(), X_OK) == 0; }

  image::TemporaryDirectory directory_;
};

TEST_F(DiskTest, ASparseCopyHasTheSameContentAndWritesNoZeros) {
  const os::Fd from = make("from", 8_MiB + 123), to = make("to", 0);
  put(from, 0, "begin");
  put(from, 3_MiB - 2, "across a page");
  put(from, 5_MiB, std::string(1_MiB, '\0'));  // zeros that are written are still zeros
  put(from, 8_MiB + 120, "end");
  ASSERT_OK(copy_sparse(from, to));
  EXPECT_EQ(content("from"), content("to"));
  EXPECT_LT(room("to"), 1_MiB);
}

TEST_F(DiskTest, EmptyFilesAndHolesAreCopied) {
  const os::Fd nothing = make("nothing", 0), hole = make("hole", 4_MiB);
  const os::Fd to = make("to", 77);
  ASSERT_OK(copy_sparse(hole, to));
  EXPECT_EQ(fs::file_size(path("to")), 4_MiB);
  ASSERT_OK(copy_sparse(nothing, to));
  EXPECT_EQ(fs::file_size(path("to")), 0U);
}

TEST_F(DiskTest, AFullDeviceIsAnErrorAndLeavesNoCopy) {
  const os::Fd from = make("from", 1_MiB);
  put(from, 4096, "x");
  // The length is refused: no file of it fits the limit.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status copied = copy_disk(path("from"), path("to"));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_DFL);
  if (copied) GTEST_SKIP() << "this file system shares extents: nothing was written";
  EXPECT_FALSE(fs::exists(path("to")));
}

TEST_F(DiskTest, ACopyReplacesNothing) {
  make("from", 10);
  make("to", 20);
  const Status copied = copy_disk(path("from"), path("to"));
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().code, Errc::already_exists);
  EXPECT_EQ(fs::file_size(path("to")), 20U);
}

TEST_F(DiskTest, TheFormatIsReadFromTheFirstBytes) {
  put(make("qcow2", 1_MiB), 0, std::string_view("QFI\xfb", 4));
  make("raw", 1_MiB);
  make("empty", 0);
  EXPECT_EQ(format_of(path("qcow2")).value(), DiskFormat::qcow2);
  EXPECT_EQ(format_of(path("raw")).value(), DiskFormat::raw);
  EXPECT_EQ(format_of(path("empty")).value(), DiskFormat::raw);
  EXPECT_EQ(format_of(path("missing")).error().code, Errc::not_found);
}

TEST_F(DiskTest, LayersAreFoundInTheOrderOfTheirNumbersAndNothingElseIs) {
  EXPECT_TRUE(layers_of(directory_.path(), 0).empty());
  EXPECT_EQ(next_layer(directory_.path(), 0), path("disk-0.qcow2"));
  for (const char* name : {"disk-0.10.qcow2", "disk-0.qcow2", "disk-0.9.qcow2", "disk-1.qcow2", "disk-0.x.qcow2", "disk-00.qcow2", "disk-0..qcow2", "disk-0.3", "disk-0.0.qcow2", "control"}) make(name, 0);
  EXPECT_EQ(layers_of(directory_.path(), 0), (std::vector<fs::path>{path("disk-0.qcow2"), path("disk-0.9.qcow2"), path("disk-0.10.qcow2")}));
  EXPECT_EQ(next_layer(directory_.path(), 0), path("disk-0.11.qcow2"));
  EXPECT_EQ(node_of(path("disk-0.11.qcow2")), "disk-0.11");
}

TEST_F(DiskTest, AnOverlayIsSmallAndReplacesNothing) {
  if (!has_qemu_img()) GTEST_SKIP() << "needs qemu-img (package qemu-utils)";
  make("base", 64_MiB);
  ASSERT_OK(make_overlay({}, path("base"), path("overlay")));
  EXPECT_EQ(format_of(path("overlay")).value(), DiskFormat::qcow2);
  EXPECT_LT(room("overlay"), 1_MiB);
  EXPECT_EQ(make_overlay({}, path("base"), path("overlay")).error().code, Errc::already_exists);
  EXPECT_EQ(make_overlay({}, path("missing"), path("other")).error().code, Errc::not_found);
}

TEST_F(DiskTest, TheImageToolsWordsAreInTheError) {
  if (!has_qemu_img()) GTEST_SKIP() << "needs qemu-img (package qemu-utils)";
  put(make("broken", 1_MiB), 0, std::string_view("QFI\xfb", 4));  // version 0
  const Status made = make_overlay({}, path("broken"), path("overlay"));
  ASSERT_FALSE(made);
  EXPECT_NE(made.error().message.find("version"), std::string::npos) << made.error().text();
  EXPECT_FALSE(fs::exists(path("overlay")));
}

TEST_F(DiskTest, FlatMemoryComesBackAsItWasAndOfTheRightLengthOnly) {
  const os::Fd memory = make("memory", 2_MiB), fresh = make("fresh", 2_MiB);
  put(memory, 12345, "pattern");
  FlatMemory part(path("part"));
  ASSERT_OK(part.save(memory, 2_MiB));
  EXPECT_EQ(part.save(memory, 2_MiB).error().code, Errc::already_exists);
  ASSERT_OK(part.load(fresh, 2_MiB));
  EXPECT_EQ(content("memory"), content("fresh"));
  EXPECT_EQ(part.load(fresh, 4_MiB).error().code, Errc::corrupt);
  EXPECT_EQ(FlatMemory(path("missing")).load(fresh, 2_MiB).error().code, Errc::not_found);
}

}  // namespace
}  // namespace yado::vm
