// A frame of the page protocol, from a peer. Checksums find damage; against malice the parsers must be right whatever the
// body says, so every input is also tried with the length and checksum that belong to it, under every operation.

#include <algorithm>
#include <cstring>

#include "base/check.hpp"
#include "pager/protocol.hpp"

using namespace yado;
using namespace yado::pager;

namespace {

void check_batch(Bytes body, BatchUse use, std::uint64_t most_pages) {
  const auto batch = parse_batch(body, use);
  if (!batch) {
    YADO_CHECK(batch.error().code == Errc::corrupt, "{}", batch.error().text());
    return;
  }
  YADO_CHECK(batch->pages() <= most_pages, "{} pages", batch->pages());
  std::uint64_t next = 0, with_data = 0;
  for (const KindRun& run : batch->runs) {
    YADO_CHECK(run.pages > 0 && run.first >= next, "a run of {} pages from {} on, after {}", run.pages, run.first, next);
    next = run.first + run.pages;
    YADO_CHECK(next > run.first && next <= most_page_number, "a run ends at {}", next);
    with_data += run.kind == PageKind::data ? run.pages : 0;
  }
  if (use != BatchUse::listing) YADO_CHECK(batch->data.size() == with_data * page_bytes, "{} bytes", batch->data.size());
  auto again = make_batch(batch->runs);
  again.insert(again.end(), batch->data.begin(), batch->data.end());
  YADO_CHECK(std::ranges::equal(again, body), "written again it is something else");
}

/// Refused with a reason, or the same when it is written again.
template <class Parse, class Make>
void check_value(Bytes body, Parse parse, Make make) {
  const auto value = parse(body);
  if (!value) {
    YADO_CHECK(value.error().code == Errc::corrupt || value.error().code == Errc::unsupported, "{}", value.error().text());
    return;
  }
  YADO_CHECK(std::ranges::equal(make(*value), body), "written again it is something else");
}

void check_body(Bytes body) {
  constexpr std::uint64_t any = ~std::uint64_t{0};
  check_batch(body, BatchUse::get, most_data_pages);
  check_batch(body, BatchUse::put, most_data_pages);
  check_batch(body, BatchUse::answer, most_data_pages);
  check_batch(body, BatchUse::drop, any);
  check_batch(body, BatchUse::listing, any);
  check_value(body, parse_hello, make_hello);
  check_value(body, parse_welcome, make_welcome);
  check_value(body, parse_stats, make_stats);
  check_value(body, parse_number, make_number);
  check_value(body, parse_name, make_name);
  check_value(body, [](Bytes of) { return parse_save(of); }, make_save);
  check_value(body, [](Bytes of) { return parse_save(of, true); }, make_save);
  check_value(body, parse_saved, make_saved);
  check_value(body, parse_finish, make_finish);
  check_value(body, parse_load, make_load);
  check_value(body, parse_move, make_move);
  const Error error = parse_error(body);
  YADO_CHECK(static_cast<int>(error.code) > 0, "an error of no kind");
  YADO_CHECK(std::ranges::none_of(error.message, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }),
             "an error that a terminal obeys");
}

void check_frame_of(Bytes bytes) {
  const std::span<const std::byte, header_bytes> header_span(bytes.data(), header_bytes);
  const auto header = parse_header(header_span);
  if (!header) {
    YADO_CHECK(header.error().code == Errc::corrupt || header.error().code == Errc::unsupported, "{}", header.error().text());
    return;
  }
  YADO_CHECK(header->body_bytes <= most_body_bytes, "a body of {} bytes", header->body_bytes);
  if (bytes.size() - header_bytes < header->body_bytes) return;
  const Bytes body = bytes.subspan(header_bytes, header->body_bytes);
  if (!check_frame(header_span, body)) return;
  const auto again = make_frame(header->operation, header->id, body, header->flags);
  YADO_CHECK(std::ranges::equal(again, bytes.first(again.size())), "written again it is another frame");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < header_bytes) return 0;
  const Bytes bytes = std::as_bytes(std::span(data, size));
  check_frame_of(bytes);
  const Bytes body = bytes.subspan(header_bytes).first(std::min(size - header_bytes, most_body_bytes));
  check_body(body);
  check_frame_of(make_frame(static_cast<Operation>(data[5]), 7, body, data[6]));
  return 0;
}
