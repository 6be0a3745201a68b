#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

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

Result<std::string> read_piece(const OpenFile& file, Range range) {
  std::string piece(range.end - range.first, '\0');
  std::size_t done = 0;
  while (done < piece.size()) {
    const ssize_t got =
        ::pread(file.fd.get(), piece.data() + done, piece.size() - done, static_cast<off_t>(range.first + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read");
    if (got == 0) return fail(Errc::corrupt, "the file became shorter");
    done += static_cast<std::size_t>(got);
  }
  return piece;
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
  wire::Headers headers{{"content-type", "application/octet-stream"},
                        {"content-length", std::to_string(range->end - range->first)}};
  if (!asked.empty())
    headers.emplace_back("content-range", fmt::format("bytes {}-{}/{}", range->first, range->end - 1, (*file)->bytes));
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
