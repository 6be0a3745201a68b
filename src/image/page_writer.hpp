#pragma once
// Writing a part of pages: one PageWriter per part, one PageAppender per thread (docs/formats/pages.md, "Writing").
//
//   auto writer = PageWriter::create(draft.part_directory("pages-h1"), {.guest_pages = n, .cut = cut});
//   each thread:  PageAppender appender = writer->appender();  appender.put(page, contents, round); … appender.flush();
//   at the end:   writer->finish(owned);
//
// After the first error of any appender (`no_space`, `io`) every further call gives that error: the part cannot be
// completed. Without a successful `finish` destruction removes the files.

#include <array>
#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "image/page.hpp"
#include "image/page_index.hpp"
#include "image/page_log.hpp"
#include "image/page_table.hpp"

namespace yado::image {

struct PageWriterOptions {
  std::uint64_t guest_pages = 0;
  CutId cut;
  CutId base_cut;                     ///< none: self-contained
  Caching caching = Caching::direct;  ///< where the file system can
};

struct PageWriterFigures {
  std::uint64_t puts = 0;
  std::uint64_t zeros = 0;
  std::uint64_t duplicates = 0;     ///< that refer to a slot already there
  std::uint64_t superseded = 0;     ///< versions that a newer one replaced, or that came too late
  std::uint64_t cleaned = 0;        ///< pages written once more, to empty an extent
  std::uint64_t bytes_written = 0;  ///< to the log, those included
};

class PageAppender;

class PageWriter {
 public:
  /// Makes pages.log in the directory `part`, which exists and has neither log nor index. `invalid_argument` for a
  /// guest without pages or beyond 64 TiB, or cuts that make no sense.
  static Result<PageWriter> create(const std::filesystem::path& part, const PageWriterOptions& options);
  PageWriter(PageWriter&&) noexcept;
  PageWriter& operator=(PageWriter&&) = delete;
  ~PageWriter();

  /// Thread-safe. An appender must not outlive the writer.
  PageAppender appender();
  /// Once, after every appender was flushed. Records of pages outside `owned` are dropped. May move pages to
  /// empty extents, so the guest should run again meanwhile. Everything is on the disk when it returns. `conflict`
  /// names a page that is owned without having been put (self-contained parts only), or says that an appender was not
  /// flushed.
  Result<PageIndex> finish(const PageSet& owned);
  /// So far. Thread-safe.
  PageWriterFigures figures() const;

  struct State;

 private:
  explicit PageWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// For one thread at a time; it writes what is full on others. Takes 6 MiB.
class PageAppender {
 public:
  PageAppender(PageAppender&&) noexcept;
  PageAppender& operator=(PageAppender&&) = delete;
  ~PageAppender();

  /// `contents` may be memory that its guest is changing: it is copied once, and what was copied is what is recorded.
  /// No alignment is asked for.
  Status put(PageNumber page, PageContents contents, Round round);
  Status put_zeros(PageNumber page, Round round);
  /// Writes what is buffered. Durable only after `PageWriter::finish`.
  Status flush();

 private:
  friend class PageWriter;
  explicit PageAppender(PageWriter::State& state);
  Status check(PageNumber page) const;
  std::byte* room(std::size_t number) const { return memory_.get() + number * extent_slots * page_bytes; }
  std::byte* filling() const { return room(turn_); }
  PageBuffer buffered(std::uint64_t number) const;
  PageBuffer repeated(std::uint64_t number) const;
  Status write();
  /// An extent's writing; says which one is dead already.
  using Flight = std::future<std::optional<Slot>>;
  Status landed(Flight& flight);
  std::optional<Slot> find_same(PageContents page, std::uint64_t checksum, std::optional<Slot> seen);
  bool same(PageContents page, Slot slot, PageContents other);
  Result<Slot> append(PageNumber page, std::uint64_t checksum);
  Status record(PageNumber page, PageRecord record, Round round);
  Status clean(Slot extent);
  Status move(const PageLog::LiveSlot& live, PageContents contents);

  /// Contents that came at least twice, to compare with without reading the log.
  struct Repeated {
    std::uint64_t checksum = 0;
    Slot slot = zero_slot;
  };
  static constexpr std::uint32_t repeated_pages = 256;
  static constexpr std::size_t extents_written = 3;  ///< at a time, while another one is being filled

  struct Free {
    void operator()(std::byte* memory) const;
  };
  PageWriter::State* state_;
  std::unique_ptr<std::byte[], Free> memory_;  ///< the extents being filled and written, in turn; room to read one; the repeated contents
  std::optional<Slot> extent_;                 ///< reserved when its first page comes
  std::vector<PageNumber> owners_;             ///< of its slots, as many as are used
  std::vector<Repeated> repeated_;             ///< [checksum % repeated_pages]
  std::size_t turn_ = 0;                       ///< which extent is being filled
  std::array<Flight, extents_written + 1> flights_;  ///< of the extents in memory_; the last member, so that these end first
};

}  // namespace yado::image
