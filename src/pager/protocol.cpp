#include "pager/protocol.hpp"

#define XXH_STATIC_LINKING_ONLY  // for a state on the stack
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace yado::pager {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are little-endian and copied as they lie");

constexpr std::uint32_t magic = 0x47504459;  // "YDPG"
constexpr std::uint8_t version = 1;
constexpr std::size_t checksum_offset = 24;
constexpr std::size_t batch_head_bytes = 8;
constexpr std::size_t run_bytes = 16;
constexpr std::uint32_t most_chain_images = 16;  // docs/formats/pages.md, "Chains"

template <class T>
T read_at(Bytes bytes, std::size_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

class Writer {
 public:
  Writer() = default;
  /// Goes on behind `begun`.
  explicit Writer(std::vector<std::byte> begun) : out_(std::move(begun)) {}
  template <class T>
  Writer& add(T value) {
    const auto at = out_.size();
    out_.resize(at + sizeof value);
    std::memcpy(out_.data() + at, &value, sizeof value);
    return *this;
  }
  Writer& add_text(std::string_view text) {
    add(static_cast<std::uint32_t>(text.size()));
    const auto at = out_.size();
    out_.resize(at + text.size());
    if (!text.empty()) std::memcpy(out_.data() + at, text.data(), text.size());
    return *this;
  }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  std::vector<std::byte> out_;
};

/// Reads fields off the front; once one is missing, all that follow are, and ok() says so.
class Reader {
 public:
  explicit Reader(Bytes bytes) : left_(bytes) {}
  template <class T>
  T take() {
    if (left_.size() < sizeof(T)) {
      ok_ = false;
      left_ = {};
      return T{};
    }
    const T value = read_at<T>(left_, 0);
    left_ = left_.subspan(sizeof(T));
    return value;
  }
  std::string take_text(std::size_t most) {
    const auto size = take<std::uint32_t>();
    if (size > most || size > left_.size()) {
      ok_ = false;
      left_ = {};
      return {};
    }
    std::string text(reinterpret_cast<const char*>(left_.data()), size);
    left_ = left_.subspan(size);
    return text;
  }
  /// Every field was there, and nothing is left over.
  bool done() const { return ok_ && left_.empty(); }

 private:
  Bytes left_;
  bool ok_ = true;
};

std::uint64_t checksum_of(Bytes header, std::span<const Bytes> body) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, header.data(), checksum_offset);
  for (const Bytes part : body) XXH3_64bits_update(&state, part.data(), part.size());
  return XXH3_64bits_digest(&state);
}

bool known(std::uint8_t operation) {
  return (operation >= 1 && operation <= 15) || (operation >= 129 && operation <= 132) || operation == 255;
}

bool allowed(PageKind kind, BatchUse use) {
  switch (use) {
    case BatchUse::get:
    case BatchUse::drop: return kind == PageKind::wanted;
    case BatchUse::put:
    case BatchUse::listing: return kind == PageKind::data || kind == PageKind::zero;
    case BatchUse::answer: return kind != PageKind::wanted;
  }
  return false;
}

std::unexpected<Error> wrong(std::string_view what) { return fail(Errc::corrupt, "page message: {}", what); }

}  // namespace

std::string_view name_of(Operation operation) {
  switch (operation) {
    case Operation::hello: return "HELLO";
    case Operation::get: return "GET";
    case Operation::put: return "PUT";
    case Operation::drop: return "DROP";
    case Operation::list: return "LIST";
    case Operation::stat: return "STAT";
    case Operation::save: return "SAVE";
    case Operation::load: return "LOAD";
    case Operation::move: return "MOVE";
    case Operation::end: return "END";
    case Operation::fix: return "FIX";
    case Operation::finish: return "FINISH";
    case Operation::keep: return "KEEP";
    case Operation::abandon: return "ABANDON";
    case Operation::quota: return "QUOTA";
    case Operation::welcome: return "WELCOME";
    case Operation::pages: return "PAGES";
    case Operation::done: return "DONE";
    case Operation::stats: return "STATS";
    case Operation::error: return "ERROR";
  }
  return "?";
}

bool takes_long(Operation operation) {
  switch (operation) {
    case Operation::save:
    case Operation::load:
    case Operation::move:
    case Operation::finish:
    case Operation::keep:
    case Operation::abandon: return true;
    default: return false;
  }
}

Result<Header> parse_header(std::span<const std::byte, header_bytes> bytes) {
  if (read_at<std::uint32_t>(bytes, 0) != magic) return wrong("it does not begin with YDPG: the peer speaks something else");
  const auto its_version = read_at<std::uint8_t>(bytes, 4);
  if (its_version != version)
    return fail(Errc::unsupported, "page message: version {}, this program speaks {}", its_version, version);
  const auto operation = read_at<std::uint8_t>(bytes, 5);
  if (!known(operation)) return fail(Errc::unsupported, "page message: operation {} is unknown", operation);
  Header header{static_cast<Operation>(operation), read_at<std::uint16_t>(bytes, 6), read_at<std::uint64_t>(bytes, 8),
                read_at<std::uint32_t>(bytes, 16), read_at<std::uint64_t>(bytes, checksum_offset)};
  if (header.body_bytes > most_body_bytes)
    return fail(Errc::corrupt, "page message: {} with a body of {} bytes, at most {} are allowed",
                name_of(header.operation), header.body_bytes, most_body_bytes);
  if (read_at<std::uint32_t>(bytes, 20) != 0) return wrong("reserved bits are set");
  const bool has_flag = header.operation == Operation::save || header.operation == Operation::finish ||
                        header.operation == Operation::load || header.operation == Operation::put;
  const bool limited_save = header.operation == Operation::save && header.flags == (flag_first | flag_limited);
  if (header.flags > (has_flag ? 1 : 0) && !limited_save) return wrong("unknown flags are set");
  return header;
}

Status check_frame(std::span<const std::byte, header_bytes> bytes, Bytes body) {
  if (checksum_of(bytes, std::span(&body, 1)) != read_at<std::uint64_t>(bytes, checksum_offset))
    return wrong("its checksum is wrong");
  return {};
}

std::array<std::byte, header_bytes> make_header(Operation operation, std::uint64_t id, std::span<const Bytes> body,
                                                std::uint16_t flags) {
  std::size_t size = 0;
  for (const Bytes part : body) size += part.size();
  std::array<std::byte, header_bytes> out{};
  const auto write = [&](std::size_t offset, auto value) { std::memcpy(out.data() + offset, &value, sizeof value); };
  write(0, magic);
  write(4, version);
  write(5, static_cast<std::uint8_t>(operation));
  write(6, flags);
  write(8, id);
  write(16, static_cast<std::uint32_t>(size));
  write(checksum_offset, checksum_of(out, body));
  return out;
}

std::vector<std::byte> make_frame(Operation operation, std::uint64_t id, Bytes body, std::uint16_t flags) {
  const auto header = make_header(operation, id, std::span(&body, 1), flags);
  std::vector<std::byte> frame(header.size() + body.size());
  std::ranges::copy(body, std::ranges::copy(header, frame.begin()).out);
  return frame;
}

std::uint64_t Batch::pages() const {
  std::uint64_t sum = 0;
  for (const KindRun& run : runs) sum += run.pages;
  return sum;
}

Result<Batch> parse_batch(Bytes body, BatchUse use, Bytes* rest) {
  if (body.size() < batch_head_bytes) return wrong("the batch has no head");
  const auto count = read_at<std::uint32_t>(body, 0);
  if (count > most_runs || read_at<std::uint32_t>(body, 4) != 0) return wrong("the batch's head is wrong");
  if (body.size() < batch_head_bytes + count * run_bytes) return wrong("the batch's runs are cut");
  Batch batch;
  batch.runs.reserve(count);
  PageNumber next = 0;
  std::uint64_t bounded = 0, with_data = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const Bytes at = body.subspan(batch_head_bytes + i * run_bytes, run_bytes);
    const KindRun run{read_at<std::uint64_t>(at, 0), read_at<std::uint32_t>(at, 8),
                      static_cast<PageKind>(read_at<std::uint8_t>(at, 12))};
    if (read_at<std::uint32_t>(at, 12) >> 8 != 0) return wrong("reserved bits are set in a run");
    if (!allowed(run.kind, use)) return wrong("a run has a kind that does not belong there");
    if (run.pages == 0 || run.first >= most_page_number || run.pages > most_page_number - run.first)
      return wrong("a run is empty, or ends beyond every memory");
    if (run.first < next) return wrong("runs overlap or are not in order");
    next = run.first + run.pages;
    if (run.kind == PageKind::data) with_data += run.pages;
    bounded += run.pages;
    batch.runs.push_back(run);
  }
  if (use != BatchUse::drop && use != BatchUse::listing && bounded > most_data_pages)
    return wrong(fmt::format("a batch of {} pages, at most {} are allowed", bounded, most_data_pages));
  if (use == BatchUse::listing) with_data = 0;
  const Bytes after = body.subspan(batch_head_bytes + count * run_bytes);
  if (after.size() < with_data * page_bytes || (rest == nullptr && after.size() != with_data * page_bytes))
    return wrong("the data's length is not that of its pages");
  batch.data = after.first(with_data * page_bytes);
  if (rest != nullptr) *rest = after.subspan(batch.data.size());
  return batch;
}

std::vector<std::byte> make_batch(std::span<const KindRun> runs) {
  Writer out;
  out.add(static_cast<std::uint32_t>(runs.size())).add(std::uint32_t{0});
  for (const KindRun& run : runs) out.add(run.first).add(run.pages).add(static_cast<std::uint32_t>(run.kind));
  return out.take();
}

std::vector<KindRun> with_kind(std::span<const PageRun> runs, PageKind kind) {
  std::vector<KindRun> out;
  for (const PageRun& run : runs) out.push_back({run.first, run.pages, kind});
  return out;
}

void append(std::vector<KindRun>& runs, PageNumber page, PageKind kind) {
  if (!runs.empty() && runs.back().kind == kind && runs.back().first + runs.back().pages == page)
    ++runs.back().pages;
  else
    runs.push_back({page, 1, kind});
}

std::vector<std::byte> make_hello(const Hello& hello) {
  Writer out;
  out.add(hello.epoch)
      .add(hello.generation)
      .add(hello.pages)
      .add(hello.quota_pages)
      .add(static_cast<std::uint32_t>(page_bytes))
      .add(static_cast<std::uint32_t>(hello.role))
      .add_text(hello.session);
  if (names_predecessor(hello.role)) out.add(hello.from);
  return out.take();
}

Result<Hello> parse_hello(Bytes body) {
  Reader in(body);
  Hello hello;
  hello.epoch = in.take<std::uint64_t>();
  hello.generation = in.take<std::uint64_t>();
  hello.pages = in.take<std::uint64_t>();
  hello.quota_pages = in.take<std::uint64_t>();
  const auto size = in.take<std::uint32_t>();
  const auto flags = in.take<std::uint32_t>();
  hello.role = static_cast<Role>(flags);
  hello.session = in.take_text(most_name_bytes);
  if (names_predecessor(hello.role)) hello.from = in.take<std::uint64_t>();
  if (!in.done() || flags > 4) return wrong("HELLO is malformed");
  if (size != page_bytes) return fail(Errc::unsupported, "HELLO: pages of {} bytes, this program knows {}", size, page_bytes);
  if (hello.pages > most_pages || hello.quota_pages > most_pages) return wrong("HELLO: a size beyond every memory");
  return hello;
}

std::vector<std::byte> make_welcome(const Welcome& welcome) {
  return Writer().add(welcome.instance).add(welcome.held_pages).take();
}

Result<Welcome> parse_welcome(Bytes body) {
  Reader in(body);
  Welcome welcome;
  welcome.instance = in.take<std::uint64_t>();
  welcome.held_pages = in.take<std::uint64_t>();
  if (!in.done()) return wrong("WELCOME is malformed");
  return welcome;
}

std::vector<std::byte> make_stats(const SessionStats& stats) {
  return Writer()
      .add(stats.data_pages)
      .add(stats.zero_pages)
      .add(stats.quota_pages)
      .add(stats.changed_pages)
      .add(stats.puts)
      .add(stats.gets)
      .add(stats.disk_pages)
      .add(stats.saved_pages)
      .add(stats.pending_pages)
      .take();
}

Result<SessionStats> parse_stats(Bytes body) {
  Reader in(body);
  SessionStats stats;
  for (std::uint64_t* field : {&stats.data_pages, &stats.zero_pages, &stats.quota_pages, &stats.changed_pages,
                               &stats.puts, &stats.gets, &stats.disk_pages, &stats.saved_pages, &stats.pending_pages})
    *field = in.take<std::uint64_t>();
  if (!in.done()) return wrong("STATS is malformed");
  return stats;
}

std::vector<std::byte> make_number(std::uint64_t number) { return Writer().add(number).take(); }

Result<std::uint64_t> parse_number(Bytes body) {
  Reader in(body);
  const auto number = in.take<std::uint64_t>();
  if (!in.done()) return wrong("a number of 8 bytes was expected");
  return number;
}

std::vector<std::byte> make_name(std::string_view name) { return Writer().add_text(name).take(); }

Result<std::string> parse_name(Bytes body) {
  Reader in(body);
  std::string name = in.take_text(most_name_bytes);
  if (!in.done() || name.empty()) return wrong("a name was expected");
  return name;
}

std::vector<std::byte> make_save(const SaveRequest& save) {
  Writer out;
  if (save.bytes_per_second != 0) out.add(save.bytes_per_second);
  out.add_text(save.name).add(save.cut.bytes).add(save.base.bytes);
  if (!save.base_name.empty()) out.add_text(save.base_name);
  return out.take();
}

Result<SaveRequest> parse_save(Bytes body, bool limited) {
  Reader in(body);
  SaveRequest save;
  if (limited) save.bytes_per_second = in.take<std::uint64_t>();
  save.name = in.take_text(most_name_bytes);
  save.cut.bytes = in.take<decltype(save.cut.bytes)>();
  save.base.bytes = in.take<decltype(save.base.bytes)>();
  const bool named_base = !in.done();
  if (named_base) save.base_name = in.take_text(most_name_bytes);
  if (!in.done() || save.name.empty() || save.cut.none() || save.cut == save.base) return wrong("SAVE is malformed");
  if (limited && save.bytes_per_second == 0) return wrong("SAVE names a rate of 0");
  if (named_base && (save.base_name.empty() || save.base.none())) return wrong("SAVE names a base that is none");
  return save;
}

std::vector<std::byte> make_saved(const Saved& saved) { return Writer().add(saved.pages).add(saved.bytes).take(); }

Result<Saved> parse_saved(Bytes body) {
  Reader in(body);
  Saved saved;
  saved.pages = in.take<std::uint64_t>();
  saved.bytes = in.take<std::uint64_t>();
  if (!in.done()) return wrong("what was saved: two numbers were expected");
  return saved;
}

std::vector<std::byte> make_finish(const FinishRequest& finish) {
  return Writer(make_batch(finish.owned)).add_text(finish.name).take();
}

Result<FinishRequest> parse_finish(Bytes body) {
  Bytes rest;
  YADO_ASSIGN(Batch batch, parse_batch(body, BatchUse::drop, &rest), "FINISH");
  YADO_ASSIGN(std::string name, parse_name(rest), "FINISH");
  return FinishRequest{std::move(batch.runs), std::move(name)};
}

std::vector<std::byte> make_load(const LoadRequest& load) {
  Writer out(make_batch(load.wanted));
  out.add(static_cast<std::uint32_t>(load.names.size()));
  for (const std::string& name : load.names) out.add_text(name);
  return out.take();
}

Result<LoadRequest> parse_load(Bytes body) {
  Bytes rest;
  YADO_ASSIGN(Batch batch, parse_batch(body, BatchUse::drop, &rest), "LOAD");
  LoadRequest load{std::move(batch.runs), {}};
  Reader in(rest);
  const auto names = in.take<std::uint32_t>();
  if (names < 1 || names > most_chain_images) return wrong("LOAD names no image, or too many");
  for (std::uint32_t i = 0; i < names; ++i) load.names.push_back(in.take_text(most_name_bytes));
  if (!in.done() || std::ranges::any_of(load.names, &std::string::empty)) return wrong("LOAD is malformed");
  return load;
}

std::vector<std::byte> make_move(const MoveRequest& move) {
  return Writer(make_batch(move.wanted))
      .add_text(move.to.unix_path)
      .add_text(move.to.address)
      .add(move.to.port)
      .add_text(move.to.expected_peer)
      .add(move.instance)
      .take();
}

Result<MoveRequest> parse_move(Bytes body) {
  Bytes rest;
  YADO_ASSIGN(Batch batch, parse_batch(body, BatchUse::drop, &rest), "MOVE");
  MoveRequest move{std::move(batch.runs), {}};
  Reader in(rest);
  move.to.unix_path = in.take_text(most_name_bytes);
  move.to.address = in.take_text(most_name_bytes);
  move.to.port = in.take<std::uint16_t>();
  move.to.expected_peer = in.take_text(most_name_bytes);
  move.instance = in.take<std::uint64_t>();
  if (!in.done() || move.to.unix_path.empty() == move.to.address.empty()) return wrong("MOVE is malformed");
  return move;
}

std::string ServerAddress::text() const {
  return unix_path.empty() ? fmt::format("{}:{}", address, port) : unix_path;
}

std::vector<std::byte> make_error(const Error& error) {
  return Writer()
      .add(static_cast<std::uint32_t>(error.code))
      .add_text(std::string_view(error.message).substr(0, most_name_bytes))
      .take();
}

Error parse_error(Bytes body) {
  Reader in(body);
  const auto code = in.take<std::uint32_t>();
  std::string text = in.take_text(most_name_bytes);
  if (!in.done() || code == 0 || code > static_cast<std::uint32_t>(Errc::conflict))
    return Error{Errc::corrupt, "page message: ERROR is malformed"};
  // It may end on somebody's terminal.
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return Error{static_cast<Errc>(code), std::move(text)};
}

}  // namespace yado::pager
