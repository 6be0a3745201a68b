// The index of a part of pages and the working set beside it, from a disk or from a peer. Their seals find damage;
// against malice the parser must be right whatever they say, so every input is also tried with the seal that belongs to
// it, and with as many bytes as its counts ask for.

#include <cstring>

#include "base/check.hpp"
#include "image/page_index.hpp"
#include "image/sealed.hpp"
#include "image/working_set.hpp"

using namespace yado;

namespace {

void check_index(const std::string& bytes) {
  const auto index = image::PageIndex::from_bytes(bytes);
  if (!index) {
    YADO_CHECK(index.error().code == Errc::corrupt || index.error().code == Errc::unsupported, "{}",
               index.error().text());
    return;
  }
  YADO_CHECK(index->to_bytes() == bytes, "written again it is something else");
  std::uint64_t records = 0;
  for (const image::PageIndex::Run& run : index->runs()) {
    YADO_CHECK(run.pages.end() <= index->guest_pages(), "a run ends at {}", run.pages.end());
    for (std::uint64_t number = run.pages.begin(); number < run.pages.end(); ++number) {
      const auto record = index->find(image::PageNumber{number});
      YADO_CHECK(record && *record == index->at(records), "page {} is not found", number);
      YADO_CHECK(record->zero() || record->slot < index->log_slots(), "page {} is at {}", number, record->slot);
      YADO_CHECK(image::contains(index->description().owned, image::PageNumber{number}), "page {}", number);
      ++records;
    }
    YADO_CHECK(!index->find(image::PageNumber{run.pages.end()}), "the run goes on");
  }
  YADO_CHECK(records == index->records(), "{} of {} records", records, index->records());
}

void check_working_set(const std::string& bytes) {
  const auto working_set = image::working_set_from_bytes(bytes);
  if (!working_set) {
    YADO_CHECK(working_set.error().code == Errc::corrupt, "{}", working_set.error().text());
    return;
  }
  YADO_CHECK(image::to_bytes(*working_set) == bytes, "written again it is something else");
}

void check(const std::string& bytes) {
  check_index(bytes);
  check_working_set(bytes);
}

std::string with_seal(std::string bytes) {
  image::append_seal(bytes);
  return bytes;
}

/// The three counts of the header brought down to what a file of this size may hold, and the file to what they ask for.
std::string as_long_as_its_counts(std::string bytes) {
  constexpr std::size_t header_bytes = 88, at_counts = 64;
  bytes.resize(std::max(bytes.size(), header_bytes));
  std::size_t length = header_bytes;
  for (const std::size_t i : {0U, 1U, 2U}) {
    std::uint64_t count = 0;
    std::memcpy(&count, bytes.data() + at_counts + 8 * i, 8);
    count %= 64;
    std::memcpy(bytes.data() + at_counts + 8 * i, &count, 8);
    length += count * (i < 2 ? 16 : 12);
  }
  bytes.resize(length);
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  check(bytes);
  const std::string body = bytes.substr(0, size - std::min(size, sizeof(image::Seal)));
  check(with_seal(body));
  check(with_seal(as_long_as_its_counts(body)));
  return 0;
}
