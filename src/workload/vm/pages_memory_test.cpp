#include "workload/vm/pages_memory.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include "base/units.hpp"
#include "image/temporary_directory.hpp"

namespace yado::vm {
namespace {

os::Fd memory_of(std::uint64_t bytes) {
  os::Fd memory(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(memory.get(), static_cast<off_t>(bytes)), 0);
  return memory;
}

void fill(const os::Fd& memory, std::uint64_t at, std::uint64_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  EXPECT_EQ(::pwrite(memory.get(), text.data(), text.size(), static_cast<off_t>(at)), static_cast<ssize_t>(bytes));
}

std::string all_of(const os::Fd& memory, std::uint64_t bytes) {
  std::string text(bytes, '\0');
  EXPECT_EQ(::pread(memory.get(), text.data(), bytes, 0), static_cast<ssize_t>(bytes));
  return text;
}

TEST(PagesMemoryTest, WhatWasSavedIsLoadedAndHolesStayHoles) {
  const image::TemporaryDirectory directory;
  constexpr std::uint64_t bytes = 16_MiB;
  const os::Fd memory = memory_of(bytes);
  fill(memory, 0, 4096, 1);
  fill(memory, 5_MiB + 4096, 3_MiB, 2);
  fill(memory, bytes - 4096, 4096, 3);
  PagesMemory part(directory.path());
  ASSERT_TRUE(part.save(memory, bytes));

  const os::Fd again = memory_of(bytes);
  const Status loaded = part.load(again, bytes);
  ASSERT_TRUE(loaded) << loaded.error().text();
  EXPECT_EQ(all_of(again, bytes), all_of(memory, bytes));
  struct stat status {};
  ::fstat(again.get(), &status);
  EXPECT_LT(static_cast<std::uint64_t>(status.st_blocks) * 512, 4_MiB);
}

TEST(PagesMemoryTest, ADamagedPageOrAnotherSizeIsRefused) {
  const image::TemporaryDirectory directory;
  const os::Fd memory = memory_of(2_MiB);
  fill(memory, 0, 1_MiB, 1);
  PagesMemory part(directory.path());
  ASSERT_TRUE(part.save(memory, 2_MiB));
  EXPECT_EQ(part.load(memory_of(4_MiB), 4_MiB).error().code, Errc::corrupt);

  std::fstream log(directory.path() / "pages.log", std::ios::in | std::ios::out | std::ios::binary);
  log.seekp(12345);
  log.put('!');
  log.close();
  const Status loaded = part.load(memory_of(2_MiB), 2_MiB);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, Errc::corrupt);
  EXPECT_NE(loaded.error().message.find("page"), std::string::npos) << loaded.error().message;
}

}  // namespace
}  // namespace yado::vm
