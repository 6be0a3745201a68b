// yado images export, import: memory as a plain sparse file, offset = address in the guest (docs/formats/pages.md).

#include <sys/random.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "base/check.hpp"
#include "cli/command.hpp"
#include "cli/images.hpp"
#include "image/chain.hpp"
#include "image/flat_memory.hpp"
#include "os/clock.hpp"

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

int export_image(const ImageOptions& options) {
  const auto store = image::Store::look_into(options.store);
  if (!store) return complain(store.error());
  const auto chain = image::load_chain(*store, ImageId(options.id));
  if (!chain) return complain(chain.error());
  {
    Progress progress("exporting", chain->guest_pages());
    const Status done = image::export_flat(*chain, options.file, [&] { progress.add(1); });
    if (!done) return complain(done.error());
  }
  const json said{{"id", options.id},
                  {"file", options.file},
                  {"bytes", chain->guest_pages() * image::page_bytes},
                  {"cut", chain->cut().hex()}};
  if (options.json)
    fmt::print("{}\n", api::dump_pretty(said));
  else
    fmt::print("{}: {} bytes, the memory of {}\n", options.file, said.value("bytes", 0ull), options.id);
  return Exit::ok;
}

int import_image(const ImageOptions& options) {
  if (!valid_name(options.workload))
    return complain(
        Error{Errc::invalid_argument, fmt::format("--workload: \"{}\" is no valid name", options.workload)});
  const auto store = image::Store::look_into(options.store);
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
