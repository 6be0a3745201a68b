#include "image/page_writer.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <future>
#include <new>
#include <system_error>

#include "image/disk.hpp"
#include "image/page_files.hpp"
#include "image/pass.hpp"
#include "image/sealed.hpp"

namespace yado::image {
namespace {

// Where a page of a checksum was seen last: a hint, whoever follows it compares. One word per entry, so it needs no
// lock; the later overwrites.
class DuplicateTable {
 public:
  explicit DuplicateTable(std::uint64_t guest_pages)
      : mask_(std::bit_ceil(std::clamp<std::uint64_t>(guest_pages, 1, std::uint64_t{1} << 20)) - 1),
        entries_(std::make_unique<std::atomic<std::uint64_t>[]>(mask_ + 1)) {
    for (std::uint64_t i = 0; i <= mask_; ++i) entries_[i].store(zero_slot, std::memory_order_relaxed);
  }
  std::optional<Slot> find(std::uint64_t checksum) const {
    const std::uint64_t entry = entries_[checksum & mask_].load(std::memory_order_relaxed);
    const auto slot = static_cast<Slot>(entry);
    if (slot == zero_slot || entry >> 32 != checksum >> 32) return std::nullopt;
    return slot;
  }
  void remember(std::uint64_t checksum, Slot slot) {
    entries_[checksum & mask_].store((checksum >> 32 << 32) | slot, std::memory_order_relaxed);
  }

 private:
  std::uint64_t mask_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> entries_;
};

}  // namespace

struct PageWriter::State {
  State(std::filesystem::path directory, const PageWriterOptions& wanted, std::unique_ptr<PageLog> new_log)
      : part(std::move(directory)),
        options(wanted),
        log(std::move(new_log)),
        table(wanted.guest_pages),
        duplicates(wanted.guest_pages) {}

  /// The first error stays; it is what everybody gets from now on.
  std::unexpected<Error> break_with(const Error& error) {
    const std::lock_guard lock(mutex);
    if (!broken) first_error = error;
    broken = true;
    return std::unexpected(first_error);
  }
  Status usable() {
    if (!broken) return {};
    const std::lock_guard lock(mutex);
    return std::unexpected(first_error);
  }

  const std::filesystem::path part;
  const PageWriterOptions options;
  const std::unique_ptr<PageLog> log;
  PageTable table;
  DuplicateTable duplicates;
  std::atomic<std::uint32_t> unflushed = 0;  ///< appenders with pages in their buffer
  std::atomic<std::uint64_t> puts = 0, zeros = 0, duplicate = 0, superseded = 0, cleaned = 0, bytes_written = 0;
  std::atomic<bool> broken = false;
  std::mutex mutex;
  Error first_error;  // guarded by mutex
  bool finished = false;
};

Result<PageWriter> PageWriter::create(const std::filesystem::path& part, const PageWriterOptions& options) {
  if (options.guest_pages == 0 || options.guest_pages > max_guest_pages)
    return fail(Errc::invalid_argument, "{}: a guest of {} pages", part.native(), options.guest_pages);
  if (options.cut.none() || options.cut == options.base_cut)
    return fail(Errc::invalid_argument, "{}: the cut has no name of its own", part.native());
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(part / index_file, error)))
    return fail(Errc::already_exists, "{}: is a part already", part.native());
  YADO_TAKE(auto log, PageLog::create(part / log_file, options.caching));
  return PageWriter(std::make_unique<State>(part, options, std::move(log)));
}

PageWriter::PageWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
PageWriter::PageWriter(PageWriter&&) noexcept = default;

PageWriter::~PageWriter() {
  if (!state_ || state_->finished) return;
  ::unlink((state_->part / index_file).c_str());  // the index first: never an index without its log
  ::unlink((state_->part / log_file).c_str());
}

PageAppender PageWriter::appender() { return PageAppender(*state_); }

Result<PageIndex> PageWriter::finish(const PageSet& owned) {
  State& state = *state_;
  YADO_CHECK(!state.finished, "{}: finished twice", state.part.native());
  YADO_PASS(state.usable());
  const auto broken = [&](const Error& error) {
    return state.break_with(context(error, fmt::format("part {}", state.part.filename().native())).error());
  };
  if (state.unflushed > 0)
    return broken({Errc::conflict, fmt::format("{} appenders were not flushed", state.unflushed.load())});

  state.table.filter([&](PageNumber page, PageRecord record) {
    const bool keep = contains(owned, page);
    if (!keep && !record.zero()) state.log->release(record.slot);
    return keep;
  });
  PageAppender cleaner = appender();
  for (const Slot extent : state.log->worth_cleaning_at_the_end()) YADO_PASS(cleaner.clean(extent));
  YADO_PASS(cleaner.flush());

  PageIndex::Builder builder({state.options.guest_pages, state.options.cut, state.options.base_cut, owned});
  state.table.each([&](PageNumber page, PageRecord record) { builder.add(page, record); });
  auto index = std::move(builder).finish();
  if (!index) return broken(index.error());
  if (Status done = state.log->finish(index->log_slots()); !done) return broken(done.error());
  if (Status done = write_new_file(state.part / index_file, index->to_bytes()); !done) return broken(done.error());
  if (Status done = sync_directory(state.part); !done) return broken(done.error());
  state.finished = true;
  return index;
}

PageWriterFigures PageWriter::figures() const {
  return {state_->puts, state_->zeros, state_->duplicate, state_->superseded, state_->cleaned, state_->bytes_written};
}

// Aligned for O_DIRECT.
PageAppender::PageAppender(PageWriter::State& state)
    : state_(&state),
      memory_(static_cast<std::byte*>(
          ::operator new(((extents_written + 2) * extent_slots + repeated_pages) * page_bytes, std::align_val_t(page_bytes)))) {
  owners_.reserve(extent_slots);
  repeated_.resize(repeated_pages);
}
PageAppender::PageAppender(PageAppender&& other) noexcept
    : state_(other.state_),
      memory_(std::move(other.memory_)),
      extent_(std::exchange(other.extent_, std::nullopt)),
      owners_(std::exchange(other.owners_, {})),
      repeated_(std::move(other.repeated_)),
      turn_(other.turn_),
      flights_(std::move(other.flights_)) {}
PageAppender::~PageAppender() = default;  // waits for what is being written

void PageAppender::Free::operator()(std::byte* memory) const {
  ::operator delete(memory, std::align_val_t(page_bytes));
}

PageBuffer PageAppender::buffered(std::uint64_t number) const { return PageBuffer(filling() + number * page_bytes, page_bytes); }
PageBuffer PageAppender::repeated(std::uint64_t number) const { return PageBuffer(room(extents_written + 2) + number * page_bytes, page_bytes); }

Status PageAppender::check(PageNumber page) const {
  if (value_of(page) >= state_->options.guest_pages)
    return fail(Errc::invalid_argument, "page {} of a guest of {} pages", page, state_->options.guest_pages);
  return state_->usable();
}

Status PageAppender::put(PageNumber page, PageContents contents, Round round) {
  if (is_zero(contents)) return put_zeros(page, round);
  YADO_PASS(check(page));
  // The copy first: the guest may write into `contents` while its checksum is made.
  const PageBuffer copy = buffered(owners_.size());
  std::memcpy(copy.data(), contents.data(), page_bytes);
  const std::uint64_t checksum = checksum_of(copy);
  const std::optional<Slot> seen = state_->duplicates.find(checksum);
  std::optional<Slot> slot = find_same(copy, checksum, seen);
  if (slot) {
    ++state_->duplicate;
  } else {
    YADO_TAKE(slot, append(page, checksum));
    if (seen) {
      repeated_[checksum % repeated_pages] = {checksum, *slot};
      std::ranges::copy(copy, this->repeated(checksum % repeated_pages).begin());
    }
  }
  return record(page, {*slot, checksum}, round);
}

Status PageAppender::put_zeros(PageNumber page, Round round) {
  YADO_PASS(check(page));
  ++state_->zeros;
  return record(page, {zero_slot, checksum_of_zeros()}, round);
}

// Only in memory: reading a page back from the disk takes longer than writing it again.
std::optional<Slot> PageAppender::find_same(PageContents page, std::uint64_t checksum, std::optional<Slot> seen) {
  const std::uint32_t place = checksum % repeated_pages;
  const Repeated& known = repeated_[place];
  if (known.slot != zero_slot && known.checksum == checksum && same(page, known.slot, repeated(place))) return known.slot;
  if (seen && extent_ && *seen / extent_slots == *extent_ / extent_slots &&
      same(page, *seen, buffered(*seen % extent_slots)))
    return seen;
  return std::nullopt;
}

bool PageAppender::same(PageContents page, Slot slot, PageContents other) {
  return std::memcmp(page.data(), other.data(), page_bytes) == 0 && state_->log->hold_again(slot);
}

// The page is in the buffer already, behind those that are used.
Result<Slot> PageAppender::append(PageNumber page, std::uint64_t checksum) {
  if (!extent_) {
    auto extent = state_->log->reserve();
    if (!extent) return state_->break_with(extent.error());
    extent_ = *extent;
    ++state_->unflushed;
  }
  const Slot slot = *extent_ + static_cast<Slot>(owners_.size());
  owners_.push_back(page);
  state_->duplicates.remember(checksum, slot);
  return slot;
}

Status PageAppender::record(PageNumber page, PageRecord record, Round round) {
  ++state_->puts;
  const std::optional<PageRecord> obsolete = state_->table.put(page, record, round);
  const bool full = owners_.size() == extent_slots;
  if (full) YADO_PASS(write());
  if (!obsolete) return {};
  ++state_->superseded;
  if (obsolete->zero() || !state_->log->release(obsolete->slot)) return {};
  return clean(obsolete->slot / extent_slots * extent_slots);
}

// Pages that are still wanted are written once more, so that the whole extent can be given back in one piece.
Status PageAppender::clean(Slot extent) {
  const auto live = state_->log->begin_cleaning(extent);
  if (!live) return {};
  const std::span<std::byte> data(room(extents_written + 1), extent_slots * page_bytes);
  auto got = live->empty() ? 0 : state_->log->read(extent, data);
  if (!got) return state_->break_with(got.error());
  for (const PageLog::LiveSlot& slot : *live) {
    const std::size_t at = (slot.slot - extent) * page_bytes;
    if (at + page_bytes > *got)
      return state_->break_with({Errc::io, fmt::format("{}: it became shorter while it was written", log_file)});
    YADO_PASS(move(slot, PageContents(data.data() + at, page_bytes)));
  }
  if (Status punched = state_->log->end_cleaning(extent); !punched) return state_->break_with(punched.error());
  return {};
}

Status PageAppender::move(const PageLog::LiveSlot& live, PageContents contents) {
  // Not so when it is only wanted by other pages of the same contents, or being written down by its owner right now.
  if (state_->table.refers(live.owner, live.slot)) {
    std::memcpy(buffered(owners_.size()).data(), contents.data(), page_bytes);
    YADO_TAKE(const Slot slot, append(live.owner, checksum_of(contents)));
    ++state_->cleaned;
    const bool moved = state_->table.move(live.owner, live.slot, slot);  // a newer version may have come meanwhile
    state_->log->release(moved ? live.slot : slot);
  }
  state_->log->release(live.slot);
  return owners_.size() == extent_slots ? write() : Status();
}

/// While the next extents are being filled: a quick disk wants more than one request at a time.
Status PageAppender::write() {
  const std::span<const std::byte> data(filling(), owners_.size() * page_bytes);
  auto task = [state = state_, extent = *std::exchange(extent_, std::nullopt), data, owners = std::exchange(owners_, {})]() -> std::optional<Slot> {
    const auto dead = state->log->write(extent, data, owners);
    if (!dead) return (void)state->break_with(dead.error()), std::nullopt;
    state->bytes_written += data.size();
    --state->unflushed;
    return *dead ? std::optional(extent) : std::nullopt;
  };
  owners_.reserve(extent_slots);
  try {
    flights_[turn_] = std::async(std::launch::async, task);
  } catch (const std::system_error&) {  // no more threads
    flights_[turn_] = std::async(std::launch::deferred, task);
  }
  turn_ = (turn_ + 1) % flights_.size();
  return landed(flights_[turn_]);
}

Status PageAppender::landed(Flight& flight) {
  const auto dead = flight.valid() ? flight.get() : std::nullopt;
  YADO_PASS(state_->usable());
  return dead ? clean(*dead) : Status();  // nothing of it is to be moved
}

Status PageAppender::flush() {
  if (extent_) YADO_PASS(write());
  for (Flight& flight : flights_) YADO_PASS(landed(flight));
  return state_->usable();
}

}  // namespace yado::image
