#pragma once
// For tests of pages: contents by number, a plain model of memory, damage.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <string>

#include "base/testing.hpp"
#include "image/page_chain.hpp"
#include "image/page_part.hpp"
#include "image/page_writer.hpp"
#include "os/file.hpp"

namespace yado::image {

using Page = std::array<std::byte, page_bytes>;

/// Different for every number; 0 is the page of zeros.
inline Page page_of(std::uint64_t number) {
  Page page{};
  if (number == 0) return page;
  std::array<std::uint64_t, page_bytes / 8> words;
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = number * 0x9e3779b97f4a7c15 + i;
  std::memcpy(page.data(), words.data(), page.size());
  return page;
}
inline Page filled(char c) {
  Page page;
  page.fill(static_cast<std::byte>(c));
  return page;
}

inline CutId cut_number(int number) { return CutId::of(fmt::format("cut {}", number)); }
inline constexpr PageNumber operator""_page(unsigned long long number) { return PageNumber{number}; }
inline constexpr Round operator""_round(unsigned long long number) { return Round{static_cast<std::uint32_t>(number)}; }

/// page -> number for page_of.
using MemoryModel = std::map<std::uint64_t, std::uint64_t>;

inline std::filesystem::path new_part(const std::filesystem::path& directory, std::string_view name) {
  std::filesystem::create_directories(directory / name);
  return directory / name;
}

inline std::string read_file(const std::filesystem::path& path) {
  return os::read_text(path).value_or("");
}

inline std::uint64_t allocated_bytes(const std::filesystem::path& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

inline void flip_bit(const std::filesystem::path& path, std::uint64_t byte, int bit) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(byte));
  const int before = file.get();
  file.seekp(static_cast<std::streamoff>(byte));
  file.put(static_cast<char>(before ^ (1 << bit)));
}

}  // namespace yado::image
