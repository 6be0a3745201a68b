#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <span>

#include "base/units.hpp"
#include "image/file_io.hpp"
#include "image/page_files.hpp"
#include "os/file.hpp"
#include "transfer/blocking.hpp"
#include "transfer/target.hpp"
#include "transfer/transfer.hpp"

namespace yado::transfer {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;

Error refusal_of(const wire::Response& response) {
  const Errc code = response.status == 404   ? Errc::not_found
                    : response.status == 403 ? Errc::permission
                                             : Errc::unavailable;
  std::string_view text = std::string_view(response.body).substr(0, 300);
  text = text.substr(0, text.find('\n'));
  return {code, fmt::format("the other agent answered {}: {}", response.status, text)};
}

Status check_room(const fs::path& directory, const image::Manifest& manifest) {
  struct statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) != 0) return fail_errno(fmt::format("statvfs {}", directory.native()));
  const std::uint64_t room = static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize;
  // In parts: the sum of what a forged manifest claims may be beyond 64 bits.
  std::uint64_t left = room;
  for (const image::Part& part : manifest.parts)
    for (const image::File& file : part.files) {
      const std::uint64_t bytes = file.data_bytes.value_or(file.bytes);
      if (bytes > left)
        return fail(Errc::no_space, "it has {} bytes or more, and {} has room for {}", room - left + bytes,
                    directory.native(), room);
      left -= bytes;
    }
  return {};
}

/// All holes.
Result<os::Fd> create_file(const image::Draft& draft, const std::string& part, const image::File& file) {
  YADO_ASSIGN(const fs::path directory, draft.part_directory(part), "create");
  const fs::path path = directory / file.path;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return fail_errno(error.value(), fmt::format("mkdir {}", path.parent_path().native()));
  YADO_ASSIGN(os::Fd fd, os::open_path(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600), "create");
  if (::ftruncate(fd.get(), static_cast<off_t>(file.bytes)) != 0)
    return fail_errno(fmt::format("{}: make it {} bytes long", path.native(), file.bytes));
  return fd;
}

/// What came of a file: `body` has the bytes of `data`, one after the other, and the rest of `covered` is holes.
struct Piece {
  Range covered;
  std::vector<Range> data;
  std::string body;
};

Result<Piece> piece_of(wire::Response response, Range asked, std::uint64_t file_bytes) {
  Piece piece{asked, {asked}, std::move(response.body)};
  if (const std::string_view data = wire::find(response.headers, "x-yado-data"); !data.empty()) {
    YADO_ASSIGN(piece.covered, parse_content_range(wire::find(response.headers, "content-range")), "answer");
    if (piece.covered.first != asked.first || piece.covered.end > file_bytes)
      return fail(Errc::corrupt, "{} came instead of {}", range_header(piece.covered), range_header(asked));
    YADO_ASSIGN(piece.data, parse_data_header(data, piece.covered), "answer");
  }
  std::uint64_t bytes = 0;
  for (const Range& range : piece.data) bytes += range.bytes();
  if (piece.body.size() != bytes) return fail(Errc::corrupt, "{} bytes came instead of {}", piece.body.size(), bytes);
  return piece;
}

Status write_piece(const os::Fd& file, const Piece& piece) {
  std::span<const std::byte> left = std::as_bytes(std::span(piece.body));
  for (const Range& range : piece.data) {
    YADO_TRY(image::write_at(file, left.first(range.bytes()), range.first), "write");
    left = left.subspan(range.bytes());
  }
  return {};
}

/// Of 512 GiB of pages in one part, about: an index is held in memory as a whole, here and by whoever opens it.
constexpr std::uint64_t longest_index = 2_GiB;

/// One pull. The draft is shared with the jobs on the other threads: whoever lets go of it last removes it.
class Pull {
 public:
  Pull(const image::Store& store, asio::any_io_executor executor, wire::Client& from, nanoseconds limit,
       std::function<void(Progress)> on_progress, Pace pace)
      : store_(store),
        executor_(std::move(executor)),
        from_(from),
        limit_(limit),
        on_progress_(std::move(on_progress)),
        pace_(std::move(pace)) {}

  asio::awaitable<Result<image::Manifest>> run(ImageId id) {
    auto manifest = co_await fetch_manifest(id);
    if (!manifest) co_return std::unexpected(std::move(manifest.error()));

    std::function<Result<std::shared_ptr<image::Draft>>()> begin =
        [&store = store_, wanted = *manifest]() -> Result<std::shared_ptr<image::Draft>> {
      YADO_TRY(check_room(store.root(), wanted), "room for it");
      auto draft = store.begin(wanted.id);
      if (!draft) return std::unexpected(std::move(draft.error()));
      return std::make_shared<image::Draft>(std::move(*draft));
    };
    auto draft = co_await blocking(executor_, std::move(begin));
    if (!draft) co_return std::unexpected(std::move(draft.error()));

    progress_.of = manifest->bytes();
    for (const image::Part& part : manifest->parts)
      for (const image::File& file : part.files)
        if (auto done = co_await fetch_file(*draft, id, part.name, file); !done)
          co_return context(done.error(), fmt::format("part {}: {}", part.name, file.path));

    std::function<Status()> commit = [shared = *draft, copied = *manifest] { return shared->commit_copy(copied); };
    auto committed = co_await blocking(executor_, std::move(commit));
    if (!committed) co_return std::unexpected(std::move(committed.error()));
    co_return manifest;
  }

  asio::awaitable<Result<image::Manifest>> run_indices(ImageId id) {
    auto manifest = co_await fetch_manifest(id);
    if (!manifest) co_return std::unexpected(std::move(manifest.error()));
    std::map<std::string, std::string> indices;
    for (const image::Part& part : manifest->parts) {
      if (part.type != image::PartType::pages) continue;
      const auto file = std::ranges::find(part.files, image::index_file, &image::File::path);
      if (file == part.files.end()) co_return fail(Errc::corrupt, "part {}: has no index", part.name);
      if (file->bytes > longest_index)
        co_return fail(Errc::no_space, "part {}: an index of {} bytes", part.name, file->bytes);
      auto text = co_await fetch_text(id, part.name, *file);
      if (!text) co_return context(text.error(), fmt::format("part {}: {}", part.name, file->path));
      indices.emplace(part.name, std::move(*text));
    }
    std::function<Status()> keep = [&store = store_, wanted = *manifest, indices = std::move(indices)] {
      return store.keep_indices(wanted, indices);
    };
    auto kept = co_await blocking(executor_, std::move(keep));
    if (!kept) co_return std::unexpected(std::move(kept.error()));
    co_return manifest;
  }

 private:
  asio::awaitable<Result<image::Manifest>> fetch_manifest(const ImageId& id) {
    wire::Request request;
    request.target = manifest_target(id);
    auto response = co_await from_.call(std::move(request), limit_);
    if (!response) co_return std::unexpected(std::move(response.error()));
    if (response->status != 200) co_return std::unexpected(refusal_of(*response));
    auto manifest = image::manifest_from_json(response->body);
    if (manifest && manifest->id != id) co_return fail(Errc::corrupt, "its manifest is that of {}", manifest->id);
    co_return manifest;
  }

  asio::awaitable<Status> fetch_file(std::shared_ptr<image::Draft> draft, const ImageId& id, const std::string& part,
                                     const image::File& file) {
    std::function<Result<std::shared_ptr<os::Fd>>()> create = [draft, part, file]() -> Result<std::shared_ptr<os::Fd>> {
      auto made = create_file(*draft, part, file);
      if (!made) return std::unexpected(std::move(made.error()));
      return std::make_shared<os::Fd>(std::move(*made));
    };
    auto created = co_await blocking(executor_, std::move(create));
    if (!created) co_return std::unexpected(std::move(created.error()));
    const std::shared_ptr<os::Fd> fd = std::move(*created);
    asio::steady_timer turn(co_await asio::this_coro::executor);

    for (std::uint64_t offset = 0; offset < file.bytes;) {
      auto piece = co_await fetch_piece(file_target(id, part, file.path), offset, file.bytes);
      if (!piece) co_return std::unexpected(std::move(piece.error()));
      const Range covered = piece->covered;
      const std::uint64_t data = piece->body.size();
      std::function<Status()> write = [draft, fd, came = std::move(*piece)] { return write_piece(*fd, came); };
      if (auto written = co_await blocking(executor_, std::move(write)); !written) co_return written;
      offset = covered.end;
      progress_.bytes += covered.bytes();
      if (on_progress_) on_progress_(progress_);
      if (!pace_) continue;
      boost::system::error_code ignored;
      turn.expires_at(pace_(data));
      co_await turn.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    co_return Status{};
  }

  asio::awaitable<Result<std::string>> fetch_text(const ImageId& id, const std::string& part, const image::File& file) {
    std::string text(file.bytes, '\0');
    for (std::uint64_t offset = 0; offset < file.bytes;) {
      auto piece = co_await fetch_piece(file_target(id, part, file.path), offset, file.bytes);
      if (!piece) co_return std::unexpected(std::move(piece.error()));
      std::size_t from = 0;
      for (const Range& range : piece->data) from += piece->body.copy(text.data() + range.first, range.bytes(), from);
      offset = piece->covered.end;
    }
    co_return text;
  }

  asio::awaitable<Result<Piece>> fetch_piece(std::string target, std::uint64_t offset, std::uint64_t file_bytes) {
    const Range range{offset, std::min(file_bytes, offset + piece_bytes)};
    wire::Request request;
    request.target = std::move(target);
    request.headers.emplace_back("range", range_header(range));
    request.headers.emplace_back("x-yado-holes", "skip");
    auto response = co_await from_.call(std::move(request), limit_);
    if (!response) co_return std::unexpected(std::move(response.error()));
    // A range behind the end of the file: it is shorter than the manifest says.
    if (response->status == 416) co_return fail(Errc::corrupt, "it is shorter there than its manifest says");
    if (response->status != 206) co_return std::unexpected(refusal_of(*response));
    co_return piece_of(std::move(*response), range, file_bytes);
  }

  const image::Store& store_;
  asio::any_io_executor executor_;
  wire::Client& from_;
  nanoseconds limit_;
  std::function<void(Progress)> on_progress_;
  Pace pace_;
  Progress progress_;
};

}  // namespace

asio::awaitable<Result<image::Manifest>> pull(const image::Store& store, asio::any_io_executor executor, ImageId id,
                                              wire::Client& from, nanoseconds limit,
                                              std::function<void(Progress)> on_progress, Pace pace) {
  Pull work(store, std::move(executor), from, limit, std::move(on_progress), std::move(pace));
  const std::string what = fmt::format("pull image {}", id);
  auto manifest = co_await work.run(std::move(id));
  if (!manifest) co_return context(manifest.error(), what);
  co_return manifest;
}

asio::awaitable<Result<image::Manifest>> pull_indices(const image::Store& store, asio::any_io_executor executor,
                                                      ImageId id, wire::Client& from, nanoseconds limit) {
  Pull work(store, std::move(executor), from, limit, {}, {});
  const std::string what = fmt::format("pull indices of image {}", id);
  auto manifest = co_await work.run_indices(std::move(id));
  if (!manifest) co_return context(manifest.error(), what);
  co_return manifest;
}

asio::awaitable<Result<std::string>> pull_bytes(ImageId id, std::string part, std::string path, std::uint64_t offset,
                                                std::uint64_t bytes, wire::Client& from, nanoseconds limit) {
  wire::Request request;
  request.target = file_target(id, part, path);
  request.headers.emplace_back("range", range_header({offset, offset + bytes}));
  auto response = co_await from.call(std::move(request), limit);
  if (!response) co_return std::unexpected(std::move(response.error()));
  if (response->status != 206 && response->status != 416) co_return std::unexpected(refusal_of(*response));
  if (response->status == 416 || response->body.size() != bytes)
    co_return fail(Errc::corrupt, "{} of {}/{} is shorter there than is known here", path, id, part);
  co_return std::move(response->body);
}

}  // namespace yado::transfer
