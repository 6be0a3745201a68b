// yado images export, import: memory as a plain sparse file, offset = address in the guest (docs/formats/pages.md).

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "base/base64.hpp"
#include "base/check.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/images.hpp"
#include "image/chain.hpp"
#include "image/file_io.hpp"
#include "image/flat_memory.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::cli {
namespace {

using nlohmann::json;

constexpr const char* memory_part = "memory";

std::uint64_t random_number() {
  std::uint64_t number = 0;
  YADO_CHECK(::getrandom(&number, sizeof number, 0) == sizeof number, "getrandom");
  return number;
}

/// Everything of `like` but its memory.
Result<image::Manifest> take_over(const image::Store& store, image::Draft& draft, const ImageId& like) {
  YADO_ASSIGN(const image::Manifest from, store.read(like), "--like");
  image::Manifest manifest{.spec_hash = from.spec_hash, .properties = from.properties};
  for (const image::Part& part : from.parts) {
    if (part.type == image::PartType::pages) continue;
    YADO_TRY(draft.link_part(store.part_directory(like, part.name), part), "--like");
    manifest.parts.push_back(part);
  }
  YADO_TRY(image::complete_disks(store, like, draft, manifest), "--like");
  return manifest;
}

Result<image::Manifest> import_into(const image::Store& store, const ImageOptions& options) {
  const ImageId id(options.id.empty() ? fmt::format("{}-import.{:08x}", options.workload, random_number() >> 32)
                                      : options.id);
  YADO_ASSIGN(image::Draft draft, store.begin(id), "import");
  image::Manifest manifest;
  if (!options.like.empty()) {
    YADO_ASSIGN(manifest, take_over(store, draft, ImageId(options.like)), "import");
  }
  manifest.id = id;
  manifest.workload = WorkloadId(options.workload);
  manifest.created_wall_ms = os::wall_ms();
  YADO_ASSIGN(const std::filesystem::path part, draft.part_directory(memory_part), "import");
  const image::CutId cut = image::CutId::of(fmt::format("import {} {:016x}", id, random_number()));
  YADO_TRY(image::import_flat(options.file, part, cut), "import");
  manifest.parts.push_back({image::PartType::pages, memory_part, {}});
  return draft.commit(std::move(manifest));
}

}  // namespace

Progress::Progress(std::string what, std::uint64_t of)
    : what_(std::move(what)), of_(of), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (terminal_ && shown_ >= 0) fmt::print(stderr, "\r\x1b[K");
}

void Progress::add(std::uint64_t amount) {
  done_ += amount;
  const int percent = of_ == 0 ? 100 : static_cast<int>(100.0 * static_cast<double>(done_) / static_cast<double>(of_));
  if (!terminal_ || percent == shown_) return;
  shown_ = percent;
  fmt::print(stderr, "\r{} {} %", what_, std::min(percent, 100));
}

namespace {

/// The file of a memory that comes in pieces; gone after an error.
class Arriving {
 public:
  static Result<Arriving> create(const std::string& path) {
    Arriving made;
    YADO_ASSIGN(made.file_, os::open_path(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600), "export");
    made.path_ = path;
    return made;
  }
  Arriving(Arriving&& other) noexcept : file_(std::move(other.file_)), path_(std::exchange(other.path_, {})) {}
  ~Arriving() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  /// `answer`: of GET /v1/images/ID/memory.
  Status put(const json& answer) {
    YADO_ASSIGN(const std::string contents, from_base64(answer.value("contents", "")), "contents");
    const auto pages = answer.value("pages", std::vector<std::uint64_t>());
    const auto guest_pages = answer.value("guest_pages", std::uint64_t{0});
    if (contents.size() != pages.size() * image::page_bytes) return fail(Errc::corrupt, "{} bytes of {} pages", contents.size(), pages.size());
    if (::ftruncate(file_.get(), static_cast<off_t>(guest_pages * image::page_bytes)) != 0) return fail_errno("truncate");
    for (std::size_t i = 0; i < pages.size(); ++i) {
      if (pages[i] >= guest_pages) return fail(Errc::corrupt, "page {} of {}", pages[i], guest_pages);
      const auto bytes = std::as_bytes(std::span(contents)).subspan(i * image::page_bytes, image::page_bytes);
      YADO_TRY(image::write_at(file_, bytes, pages[i] * image::page_bytes), "export");
    }
    return {};
  }
  Status keep() {
    if (::fsync(file_.get()) != 0) return fail_errno("fsync");
    path_.clear();
    return {};
  }

 private:
  Arriving() = default;
  os::Fd file_;
  std::string path_;
};

/// From the first host that has all of it, piece by piece.
Result<json> export_through(Client& control, const ImageOptions& options) {
  YADO_ASSIGN(Arriving file, Arriving::create(options.file), "export");
  std::optional<Progress> progress;
  json first;
  for (std::uint64_t next = 0;;) {
    YADO_ASSIGN(const json piece, control.call("GET", fmt::format("/v1/images/{}/memory?from={}", options.id, next)), "export");
    if (first.is_null()) first = json{{"guest_pages", piece.value("guest_pages", std::uint64_t{0})}, {"cut", piece.value("cut", "")}};
    if (piece.value("cut", "") != first["cut"]) return fail(Errc::conflict, "export: {} became another image meanwhile", options.id);
    YADO_TRY(file.put(piece), "export");
    const auto after = piece.value("next", std::uint64_t{0});
    if (!progress) progress.emplace("exporting", first["guest_pages"].get<std::uint64_t>());
    progress->add(after - next);
    if (after >= first["guest_pages"]) break;
    if (after <= next) return fail(Errc::corrupt, "export: the piece at page {} is empty", next);
    next = after;
  }
  YADO_TRY(file.keep(), "export");
  return json{{"id", options.id}, {"file", options.file}, {"bytes", first["guest_pages"].get<std::uint64_t>() * image::page_bytes}, {"cut", first["cut"]}};
}

int say_exported(const ImageOptions& options, const json& said) {
  if (options.json)
    fmt::print("{}\n", api::dump_pretty(said));
  else
    fmt::print("{}: {} bytes, the memory of {}\n", options.file, said.value("bytes", 0ull), options.id);
  return Exit::ok;
}

}  // namespace

int export_image(const ImageOptions& options) {
  if (options.store.empty()) {
    auto control = Client::control(options.control);
    if (!control) return complain(control.error()), Exit::no_control;
    const auto said = export_through(*control, options);
    return said ? say_exported(options, *said) : complain(*control, said.error());
  }
  const auto store = image::Store::look_into(options.store);
  if (!store) return complain(store.error());
  const auto chain = image::load_chain(*store, ImageId(options.id));
  if (!chain) return complain(chain.error());
  {
    Progress progress("exporting", chain->guest_pages());
    const Status done = image::export_flat(*chain, options.file, [&] { progress.add(1); });
    if (!done) return complain(done.error());
  }
  return say_exported(options, json{{"id", options.id},
                                    {"file", options.file},
                                    {"bytes", chain->guest_pages() * image::page_bytes},
                                    {"cut", chain->cut().hex()}});
}

int import_image(const ImageOptions& options) {
  if (!valid_name(options.workload))
    return complain(
        Error{Errc::invalid_argument, fmt::format("--workload: \"{}\" is no valid name", options.workload)});
  const auto store = image::Store::look_into(options.store.empty() ? default_store : options.store);
  if (!store) return complain(store.error());
  const auto manifest = import_into(*store, options);
  if (!manifest) return complain(manifest.error());
  if (options.json)
    fmt::print("{}\n", api::dump_pretty(json{
                           {"id", manifest->id.str()}, {"workload", options.workload}, {"bytes", manifest->bytes()}}));
  else
    fmt::print("{}\n", manifest->id);
  return Exit::ok;
}

}  // namespace yado::cli
