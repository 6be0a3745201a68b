#pragma once
// The frames between a pager and a memory server: docs/formats/page_protocol.md. Bytes to values and back; no I/O.
// What comes from a peer is judged in full before anything is done with it.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/units.hpp"
#include "image/page.hpp"
#include "pager/page.hpp"

namespace yado::pager {

using Bytes = std::span<const std::byte>;

enum class Operation : std::uint8_t {
  hello = 1, get = 2, put = 3, drop = 4, list = 5, stat = 6, save = 7, load = 8, move = 9, end = 10,
  fix = 11, finish = 12, keep = 13, abandon = 14, quota = 15,
  welcome = 129, pages = 130, done = 131, stats = 132, error = 255,
};
std::string_view name_of(Operation operation);
/// What a server works at for long: answered when it is done, however many others were asked and answered meanwhile.
bool takes_long(Operation operation);

constexpr std::uint16_t flag_first = 1;  ///< of SAVE, always: a new draft
constexpr std::uint16_t flag_limited = 2;  ///< of SAVE: a rate is named
constexpr std::uint16_t flag_more = 1;   ///< of FINISH and LOAD: more pages follow
constexpr std::uint16_t flag_unchanged = 1;  ///< of PUT: as these pages were at the last cut that was kept
constexpr std::size_t header_bytes = 32;
constexpr std::size_t most_body_bytes = 1_MiB + 128_KiB;
constexpr std::size_t most_frame_bytes = header_bytes + most_body_bytes;
constexpr std::size_t most_data_pages = 256;  ///< of one batch with data, asked for or sent
constexpr std::size_t most_runs = 4096;
constexpr std::size_t most_name_bytes = 1024;
constexpr PageNumber most_page_number = PageNumber{1} << 52;
constexpr std::uint64_t most_pages = std::uint64_t{1} << 34;  ///< of a workload, as in image/page.hpp: 64 TiB

struct Header {
  Operation operation = Operation::error;
  std::uint16_t flags = 0;
  std::uint64_t id = 0;
  std::uint32_t body_bytes = 0;
  std::uint64_t checksum = 0;
};

/// `corrupt` or `unsupported`: the connection cannot go on.
Result<Header> parse_header(std::span<const std::byte, header_bytes> bytes);
/// The checksum, once the body is there.
Status check_frame(std::span<const std::byte, header_bytes> bytes, Bytes body);

/// The header of a frame whose body is these parts, one after the other.
std::array<std::byte, header_bytes> make_header(Operation operation, std::uint64_t id, std::span<const Bytes> body,
                                                std::uint16_t flags = 0);
/// The whole of a frame with a small body.
std::vector<std::byte> make_frame(Operation operation, std::uint64_t id, Bytes body, std::uint16_t flags = 0);

enum class PageKind : std::uint8_t { wanted = 0, data = 1, zero = 2, absent = 3 };

struct KindRun {
  PageNumber first = 0;
  std::uint32_t pages = 0;
  PageKind kind = PageKind::wanted;
  bool operator==(const KindRun&) const = default;
};

/// A batch as it lies in a body: `data` is a view into it.
struct Batch {
  std::vector<KindRun> runs;
  Bytes data;
  std::uint64_t pages() const;
};

enum class BatchUse { get, put, drop, answer, listing };
/// Errors `corrupt`. `rest` gets what follows the batch; without it, nothing may.
Result<Batch> parse_batch(Bytes body, BatchUse use, Bytes* rest = nullptr);
/// The body's beginning: everything but the data.
std::vector<std::byte> make_batch(std::span<const KindRun> runs);
std::vector<KindRun> with_kind(std::span<const PageRun> runs, PageKind kind);
/// Adds a page behind the others, to the last run where it fits.
void append(std::vector<KindRun>& runs, PageNumber page, PageKind kind);

/// An heir is an owner of a greater epoch who goes on with the session's pages instead of beginning a new one: once welcome, the owner. It says
/// whom it inherits from, so that of several only one can. A reader sees the pages of that owner before, and changes nothing.
enum class Role : std::uint32_t { looker = 0, owner = 1, mover = 2, heir = 3, reader = 4 };
constexpr bool names_predecessor(Role role) { return role == Role::heir || role == Role::reader; }

/// Of a generation: which process of the epoch (upper half); the lower half counts its connections.
constexpr std::uint32_t life_of(std::uint64_t generation) { return static_cast<std::uint32_t>(generation >> 32); }

struct Hello {
  std::uint64_t epoch = 0;
  std::uint64_t generation = 0;   ///< a mover's and a reader's: the session's instance
  std::uint64_t pages = 0;        ///< of the workload
  std::uint64_t quota_pages = 0;  ///< what the session may hold
  Role role = Role::owner;
  std::string session;
  std::uint64_t from = 0;         ///< an heir's and a reader's: the epoch of the owner before
  bool operator==(const Hello&) const = default;
};
std::vector<std::byte> make_hello(const Hello& hello);
Result<Hello> parse_hello(Bytes body);

struct Welcome {
  std::uint64_t instance = 0;
  std::uint64_t held_pages = 0;
};
std::vector<std::byte> make_welcome(const Welcome& welcome);
Result<Welcome> parse_welcome(Bytes body);

struct SessionStats {
  std::uint64_t data_pages = 0, zero_pages = 0, quota_pages = 0, changed_pages = 0, puts = 0, gets = 0, disk_pages = 0;
  std::uint64_t saved_pages = 0, pending_pages = 0;  ///< of the draft under way
};
std::vector<std::byte> make_stats(const SessionStats& stats);
Result<SessionStats> parse_stats(Bytes body);

std::vector<std::byte> make_number(std::uint64_t number);
Result<std::uint64_t> parse_number(Bytes body);
std::vector<std::byte> make_name(std::string_view name);
Result<std::string> parse_name(Bytes body);
struct SaveRequest {
  std::string name;
  image::CutId cut;
  image::CutId base;  ///< none: all pages
  std::string base_name;  ///< the image of that cut; may be empty
  std::uint64_t bytes_per_second = 0;  ///< that are written at most; 0: no limit
};
std::vector<std::byte> make_save(const SaveRequest& save);
Result<SaveRequest> parse_save(Bytes body, bool limited = false);
constexpr std::uint16_t flags_of(const SaveRequest& save) { return save.bytes_per_second != 0 ? flag_first | flag_limited : flag_first; }

/// What SAVE and FINISH did.
struct Saved {
  std::uint64_t pages = 0, bytes = 0;
};
std::vector<std::byte> make_saved(const Saved& saved);
Result<Saved> parse_saved(Bytes body);

struct FinishRequest {
  std::vector<KindRun> owned;
  std::string name;
};
std::vector<std::byte> make_finish(const FinishRequest& finish);
Result<FinishRequest> parse_finish(Bytes body);

struct LoadRequest {
  std::vector<KindRun> wanted;
  std::vector<std::string> names;  ///< at least one, the self-contained image first
};
std::vector<std::byte> make_load(const LoadRequest& load);
Result<LoadRequest> parse_load(Bytes body);

/// Where a memory server listens.
struct ServerAddress {
  std::string unix_path;      ///< or:
  std::string address;        ///< numeric
  std::uint16_t port = 0;
  std::string expected_peer;  ///< the name in its certificate: "agent:h2"
  std::string text() const;
};
struct MoveRequest {
  std::vector<KindRun> wanted;
  ServerAddress to;
  std::uint64_t instance = 0;  ///< of the session there
};
std::vector<std::byte> make_move(const MoveRequest& move);
Result<MoveRequest> parse_move(Bytes body);

std::vector<std::byte> make_error(const Error& error);
/// The error that an ERROR frame speaks of, or `corrupt` when it is none.
Error parse_error(Bytes body);

}  // namespace yado::pager
