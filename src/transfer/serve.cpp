#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <span>

#include "image/extents.hpp"
#include "image/file_io.hpp"
#include "transfer/blocking.hpp"
#include "transfer/target.hpp"
#include "transfer/transfer.hpp"

namespace yado::transfer {
namespace {

namespace asio = boost::asio;

int status_of(Errc code) {
  switch (code) {
    case Errc::not_found:
      return 404;
    case Errc::invalid_argument:
      return 404;  // a name that no image has
    case Errc::permission:
      return 403;
    default:
      return 500;
  }
}

wire::Response text_response(int status, std::string_view text) {
  return {status, {{"content-type", "text/plain; charset=utf-8"}}, fmt::format("{}\n", text)};
}

struct OpenFile {
  os::Fd fd;
  std::uint64_t bytes = 0;
};

Result<std::shared_ptr<OpenFile>> open_file(const image::Store& store, const Target& target) {
  auto fd = store.open_file(target.image, target.part, target.path);
  if (!fd) return std::unexpected(std::move(fd.error()));
  struct stat s {};
  if (::fstat(fd->get(), &s) != 0) return fail_errno("stat");
  return std::make_shared<OpenFile>(OpenFile{std::move(*fd), static_cast<std::uint64_t>(s.st_size)});
}

Status read_into(std::string& to, const OpenFile& file, Range range) {
  const std::size_t before = to.size();
  to.resize(before + range.bytes());
  const auto room = std::as_writable_bytes(std::span(to)).subspan(before);
  YADO_ASSIGN(const std::size_t got, image::read_at(file.fd, room, range.first), "read");
  if (got != room.size()) return fail(Errc::corrupt, "the file became shorter");
  return {};
}

Result<std::string> read_piece(const OpenFile& file, Range range) {
  std::string piece;
  YADO_TRY(read_into(piece, file, range), "piece");
  return piece;
}

struct SparsePiece {
  Range covered;
  std::vector<Range> data;
  std::string body;
};

// As many bytes of data as `asked` has, and the holes around them.
Result<SparsePiece> read_data(const OpenFile& file, Range asked) {
  SparsePiece piece{.covered = {asked.first, asked.first}};
  while (piece.covered.end < file.bytes) {
    YADO_ASSIGN(const image::Extent next, image::next_data(file.fd, piece.covered.end, file.bytes), "seek");
    piece.covered.end = next.first;
    const std::uint64_t room = asked.bytes() - piece.body.size();
    if (next.empty() || room == 0 || piece.data.size() == max_data_ranges) break;
    const Range data{next.first, next.first + std::min(room, next.bytes())};
    YADO_TRY(read_into(piece.body, file, data), "piece");
    piece.data.push_back(data);
    piece.covered.end = data.end;
  }
  return piece;
}

asio::awaitable<void> serve_data(asio::any_io_executor executor, std::shared_ptr<OpenFile> file, Range asked,
                                 wire::Responder& responder) {
  asked.end = std::min(asked.end, asked.first + piece_bytes);
  std::function<Result<SparsePiece>()> read = [file, asked] { return read_data(*file, asked); };
  auto piece = co_await blocking(std::move(executor), std::move(read));
  wire::Response response;
  if (piece)
    response = {206,
                {{"content-type", "application/octet-stream"},
                 {"content-range", content_range(piece->covered, file->bytes)},
                 {"x-yado-data", data_header(piece->data)}},
                std::move(piece->body)};
  else
    response = text_response(500, piece.error().message);
  (void)co_await responder.respond(std::move(response));
}

asio::awaitable<void> serve_manifest(const image::Store& store, asio::any_io_executor executor, const Target& target,
                                     wire::Responder& responder) {
  std::function<Result<std::string>()> read = [&store, id = target.image]() -> Result<std::string> {
    auto manifest = store.read(id);
    if (!manifest) return std::unexpected(std::move(manifest.error()));
    return image::to_json(*manifest);
  };
  auto text = co_await blocking(std::move(executor), std::move(read));
  wire::Response response;
  if (text) {
    response.headers = {{"content-type", "application/json"}};
    response.body = std::move(*text);
  } else {
    response = text_response(status_of(text.error().code), text.error().message);
  }
  (void)co_await responder.respond(std::move(response));  // a peer that is gone needs no answer
}

asio::awaitable<void> serve_file(const image::Store& store, asio::any_io_executor executor, const Target& target,
                                 const wire::Request& request, wire::Responder& responder) {
  std::function<Result<std::shared_ptr<OpenFile>>()> open = [&store, target] { return open_file(store, target); };
  auto file = co_await blocking(executor, std::move(open));
  if (!file) {
    wire::Response refusal = text_response(status_of(file.error().code), file.error().message);
    (void)co_await responder.respond(std::move(refusal));
    co_return;
  }
  const std::string_view asked = wire::find(request.headers, "range");
  auto range = parse_range(asked, (*file)->bytes);
  if (!range) {
    wire::Response refusal = text_response(416, range.error().message);
    (void)co_await responder.respond(std::move(refusal));
    co_return;
  }
  if (!asked.empty() && wire::find(request.headers, "x-yado-holes") == "skip")
    co_return co_await serve_data(std::move(executor), std::move(*file), *range, responder);
  wire::Headers headers{{"content-type", "application/octet-stream"},
                        {"content-length", std::to_string(range->end - range->first)}};
  if (!asked.empty()) headers.emplace_back("content-range", content_range(*range, (*file)->bytes));
  if (auto started = co_await responder.start(asked.empty() ? 200 : 206, std::move(headers)); !started) co_return;

  for (Range left = *range; left.first < left.end;) {
    const Range next{left.first, std::min(left.end, left.first + piece_bytes)};
    std::function<Result<std::string>()> read = [opened = *file, next] { return read_piece(*opened, next); };
    auto piece = co_await blocking(executor, std::move(read));
    if (!piece) {
      responder.abort();  // the peer must not take what it has for the whole
      co_return;
    }
    if (auto written = co_await responder.write(*piece); !written) co_return;
    left.first = next.end;
  }
}

}  // namespace

bool is_transfer(const wire::Request& request) { return parse_target(request.target).has_value(); }

asio::awaitable<void> serve(const image::Store& store, asio::any_io_executor executor, const wire::Request& request,
                            wire::Responder& responder) {
  const auto target = parse_target(request.target);
  wire::Response refusal;
  if (!request.peer.starts_with("agent:") && request.peer != "local")
    refusal = text_response(403, "images are for agents only");
  else if (!target)
    refusal = text_response(404, "there is nothing of that name");
  else if (request.method != "GET")
    refusal = text_response(405, "images can only be read");
  else if (target->part.empty())
    co_return co_await serve_manifest(store, std::move(executor), *target, responder);
  else
    co_return co_await serve_file(store, std::move(executor), *target, request, responder);
  (void)co_await responder.respond(std::move(refusal));
}

}  // namespace yado::transfer
