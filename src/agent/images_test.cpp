#include "agent/images.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>

#include "base/testing.hpp"
#include "image/temporary_directory.hpp"
#include "os/fd.hpp"
#include "os/file.hpp"
#include "wire/run.hpp"

namespace yado::agent {
namespace {

namespace fs = std::filesystem;

class ImagesTest : public ::testing::Test {
 protected:
  ImagesTest() : images_(*image::Store::open(directory_.path() / "images"), workers_) {}
  void SetUp() override {
    auto draft = images_.store().begin(id_);
    ASSERT_OK(draft);
    const auto part = draft->part_directory("disk");
    ASSERT_OK(part);
    disk_ = images_.store().part_directory(id_, "disk") / "disk-0.qcow2";
    ASSERT_OK(os::replace_text(*part / disk_.filename(), "what a guest has written"));
    auto manifest = draft->commit({.id = id_, .workload = WorkloadId("vm"), .created_wall_ms = 1, .parts = {{image::PartType::disk, "disk", {}}}, .members = {}});
    ASSERT_OK(manifest);
    wire::run(io_, images_.added(std::move(*manifest)));
  }
  Result<image::Manifest> verified() { return wire::run(io_, images_.verified(id_)); }
  void overwrite() const {
    const auto file = os::open_path(disk_, O_WRONLY);
    ASSERT_OK(file);
    ASSERT_EQ(::pwrite(file->get(), "W", 1, 0), 1);
  }
  void set_mtime(const timespec& when) const {
    const timespec times[2] = {{0, UTIME_OMIT}, when};
    ASSERT_EQ(::utimensat(AT_FDCWD, disk_.c_str(), times, 0), 0);
  }

  const ImageId id_{"vm-img.1"};
  image::TemporaryDirectory directory_;
  boost::asio::io_context io_;
  Workers workers_{1};
  Images images_;
  fs::path disk_;
};

TEST_F(ImagesTest, WhatWasOverwrittenIsNoticed) {
  ASSERT_OK(verified());
  ASSERT_NO_FATAL_FAILURE(overwrite());
  const auto found = verified();
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Errc::corrupt) << found.error().text();
}

/// A restore shares the disks: the next one must not read all of the image again for that. That it does not shows in a change, made to look like none, that
/// is not found.
TEST_F(ImagesTest, WhatIsSharedIsNotReadAgain) {
  struct stat before {};
  ASSERT_EQ(::stat(disk_.c_str(), &before), 0);
  ASSERT_NO_FATAL_FAILURE(overwrite());
  ASSERT_NO_FATAL_FAILURE(set_mtime(before.st_mtim));
  fs::create_hard_link(disk_, directory_.path() / "disk-0.qcow2");
  EXPECT_OK(verified());
}

}  // namespace
}  // namespace yado::agent
