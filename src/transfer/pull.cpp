#include <fcntl.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <memory>

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
      if (file.bytes > left)
        return fail(Errc::no_space, "it has {} bytes or more, and {} has room for {}", room - left + file.bytes,
                    directory.native(), room);
      left -= file.bytes;
    }
  return {};
}

Result<os::Fd> create_file(const image::Draft& draft, const std::string& part, const std::string& path) {
  YADO_ASSIGN(const fs::path directory, draft.part_directory(part), "create");
  const fs::path file = directory / path;
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  if (error) return fail_errno(error.value(), fmt::format("mkdir {}", file.parent_path().native()));
  return os::open_path(file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
}

/// One pull. The draft is shared with the jobs on the other threads: whoever lets go of it last removes it.
class Pull {
 public:
  Pull(const image::Store& store, asio::any_io_executor executor, wire::Client& from, nanoseconds limit,
       std::function<void(Progress)> on_progress)
      : store_(store),
        executor_(std::move(executor)),
        from_(from),
        limit_(limit),
        on_progress_(std::move(on_progress)) {}

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
    std::function<Result<std::shared_ptr<os::Fd>>()> create = [draft, part,
                                                               path = file.path]() -> Result<std::shared_ptr<os::Fd>> {
      YADO_ASSIGN(os::Fd fd, create_file(*draft, part, path), "create");
      return std::make_shared<os::Fd>(std::move(fd));
    };
    auto created = co_await blocking(executor_, std::move(create));
    if (!created) co_return std::unexpected(std::move(created.error()));
    const std::shared_ptr<os::Fd> fd = std::move(*created);

    for (std::uint64_t offset = 0; offset < file.bytes;) {
      const Range range{offset, std::min(file.bytes, offset + piece_bytes)};
      auto piece = co_await fetch_piece(file_target(id, part, file.path), range);
      if (!piece) co_return std::unexpected(std::move(piece.error()));
      std::function<Status()> write = [draft, fd, text = std::move(*piece)] { return os::write_all(*fd, text); };
      if (auto written = co_await blocking(executor_, std::move(write)); !written) co_return written;
      offset = range.end;
      progress_.bytes += range.end - range.first;
      if (on_progress_) on_progress_(progress_);
    }
    co_return Status{};
  }

  asio::awaitable<Result<std::string>> fetch_piece(std::string target, Range range) {
    wire::Request request;
    request.target = std::move(target);
    request.headers.emplace_back("range", range_header(range));
    auto response = co_await from_.call(std::move(request), limit_);
    if (!response) co_return std::unexpected(std::move(response.error()));
    // A range behind the end of the file: it is shorter than the manifest says.
    if (response->status == 416) co_return fail(Errc::corrupt, "it is shorter there than its manifest says");
    if (response->status != 206) co_return std::unexpected(refusal_of(*response));
    if (response->body.size() != range.end - range.first)
      co_return fail(Errc::corrupt, "{} bytes came instead of {}", response->body.size(), range.end - range.first);
    co_return std::move(response->body);
  }

  const image::Store& store_;
  asio::any_io_executor executor_;
  wire::Client& from_;
  nanoseconds limit_;
  std::function<void(Progress)> on_progress_;
  Progress progress_;
};

}  // namespace

asio::awaitable<Result<image::Manifest>> pull(const image::Store& store, asio::any_io_executor executor, ImageId id,
                                              wire::Client& from, nanoseconds limit,
                                              std::function<void(Progress)> on_progress) {
  Pull work(store, std::move(executor), from, limit, std::move(on_progress));
  const std::string what = fmt::format("pull image {}", id);
  auto manifest = co_await work.run(std::move(id));
  if (!manifest) co_return context(manifest.error(), what);
  co_return manifest;
}

}  // namespace yado::transfer
