#pragma once
// For tests: contents of pages by number, and batches of them.

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "pager/protocol.hpp"

namespace yado::pager {

using Page = std::array<std::byte, page_bytes>;

/// Every word is its number, mixed; 0 is the page of zeros.
inline Page page_with(std::uint64_t number) {
  Page page{};
  if (number == 0) return page;
  std::array<std::uint64_t, page_bytes / 8> words;
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = number * 0x9e3779b97f4a7c15 + i;
  std::memcpy(page.data(), words.data(), page.size());
  return page;
}

/// page -> number for page_with.
using Contents = std::map<PageNumber, std::uint64_t>;

/// A body for PUT, and its batch, which looks into it.
struct PutBody {
  std::vector<std::byte> bytes;
  Batch batch() const {
    auto parsed = parse_batch(bytes, BatchUse::put);
    EXPECT_TRUE(parsed) << parsed.error().text();
    return parsed.value_or(Batch{});
  }
};

inline PutBody put_body(const Contents& contents) {
  std::vector<KindRun> runs;
  for (const auto& [page, number] : contents) append(runs, page, number == 0 ? PageKind::zero : PageKind::data);
  PutBody body{make_batch(runs)};
  for (const auto& [page, number] : contents) {
    if (number == 0) continue;
    const Page content = page_with(number);
    body.bytes.insert(body.bytes.end(), content.begin(), content.end());
  }
  return body;
}

inline Batch wanted(std::vector<PageRun> runs) { return {with_kind(runs, PageKind::wanted), {}}; }

/// The number of which this is the page_with, if it is one.
inline std::uint64_t number_in(const std::byte* content) {
  std::uint64_t first = 0;
  std::memcpy(&first, content, sizeof first);
  // The multiplier is odd, so it has an inverse modulo 2^64.
  std::uint64_t inverse = 0x9e3779b97f4a7c15;
  for (int i = 0; i < 6; ++i) inverse *= 2 - 0x9e3779b97f4a7c15 * inverse;
  return first * inverse;
}

/// What an answer says: numbers by page, without absent pages. The content must be a page_with something.
inline Contents contents_of(const std::vector<KindRun>& runs, Bytes data) {
  Contents contents;
  std::size_t at = 0;
  for (const KindRun& run : runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      if (run.kind == PageKind::zero) contents[page] = 0;
      if (run.kind != PageKind::data) continue;
      const std::uint64_t number = number_in(data.data() + at);
      const Page whole = page_with(number);
      EXPECT_EQ(std::memcmp(whole.data(), data.data() + at, page_bytes), 0) << "page " << page << " is torn";
      contents[page] = number;
      at += page_bytes;
    }
  EXPECT_EQ(at, data.size());
  return contents;
}

}  // namespace yado::pager
