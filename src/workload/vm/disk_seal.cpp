#include "workload/vm/disk_seal.hpp"

#include <algorithm>
#include <optional>
#include <ranges>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "workload/vm/disk.hpp"
#include "workload/vm/disk_mark.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

/// What the jobs of this QEMU have done so far; none when there is no job.
Result<std::optional<json>> progress(Qmp& qmp, nanoseconds limit) {
  YADO_ASSIGN(const std::string answer, qmp.execute("query-block-jobs", "{}", limit), "disk merge");
  const json jobs = json::parse(answer, nullptr, false);
  if (!jobs.is_array()) return fail(Errc::corrupt, "disk merge: QEMU answers {}", answer);
  if (jobs.empty()) return std::optional<json>{};
  json done = json::array();
  for (const json& job : jobs) done.push_back(job.is_object() ? job.value("offset", json()) : json());
  return std::optional<json>(std::move(done));
}

Status finish_merges(Qmp& qmp, nanoseconds limit) {
  YADO_ASSIGN(std::optional<json> done, progress(qmp, limit), "wait");
  while (done) {
    // A job that ends says so; any other event only leads to one question more.
    YADO_ASSIGN(const auto event, qmp.next_event(limit), "disk merge");
    YADO_ASSIGN(std::optional<json> now, progress(qmp, limit), "wait");
    if (!event && now == done) return fail(Errc::timed_out, "disk merge: no progress within {} ms", to_ms(limit));
    done = std::move(now);
  }
  return {};
}

/// What QEMU was started with it keeps open, also after it has been merged. It refuses to close what a disk consists of, and what another one that
/// is open lies on: the newest goes first.
void close_merged(Qmp& qmp, const fs::path& directory, std::size_t disks, nanoseconds limit) {
  for (std::size_t i = 0; i < disks; ++i)
    for (const auto layers = layers_of(directory, i); const fs::path& layer : layers | std::views::reverse) (void)qmp.execute("blockdev-del", json{{"node-name", node_of(layer)}}.dump(), limit);
}

Result<std::set<std::string>> open_nodes(Qmp& qmp, nanoseconds limit) {
  YADO_ASSIGN(const std::string answer, qmp.execute("query-named-block-nodes", R"({"flat": true})", limit), "disks");
  const json nodes = json::parse(answer, nullptr, false);
  if (!nodes.is_array()) return fail(Errc::corrupt, "disks: QEMU answers {}", answer);
  std::set<std::string> names;
  for (const json& node : nodes)
    if (node.is_object()) names.insert(node.value("node-name", ""));
  return names;
}

Result<std::uint64_t> allocated(const fs::path& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) return fail_errno("stat " + file.native());
  constexpr std::uint64_t block = 512;  // of st_blocks, whatever the file system's own (stat(2))
  return static_cast<std::uint64_t>(status.st_blocks) * block;
}

/// Of one disk. A merge since changed the first of the layers that were copied; it removed another of them, or the one that was
/// put on top of them.
Result<std::size_t> layers_ahead(const std::vector<fs::path>& layers, std::size_t disk, const std::vector<fs::path>& ahead) {
  if (ahead.empty()) return std::size_t{0};
  std::vector<fs::path> names;
  for (const fs::path& one : ahead) {
    const auto copied = layers_of(one, disk);
    if (copied.empty()) return fail(Errc::conflict, "{} has nothing of disk {}", one.native(), disk);
    for (const fs::path& layer : copied) names.push_back(layer.filename());
  }
  names.push_back(next_layer(ahead.back(), disk).filename());
  const auto same = [](const fs::path& name, const fs::path& layer) { return name == layer.filename(); };
  if (names.size() > layers.size() || !std::equal(names.begin(), names.end(), layers.begin(), same))
    return fail(Errc::conflict, "disk {} was merged since the first part of it was copied", disk);
  return names.size() - 1;
}

/// The upper ones of `layers[from]` … `layers[to - 1]` into the lowest that nobody shares. Returns how many of them are left then.
Result<std::size_t> merge_into_lowest(Qmp& qmp, std::size_t disk, const std::vector<fs::path>& layers, std::size_t from, std::size_t to, nanoseconds limit) {
  std::size_t kept = 0;
  for (; from < to && is_shared(layers[from]); ++from) ++kept;
  if (to < from + 2) return kept + (to - from);
  const json arguments = {{"job-id", fmt::format("merge-{}", disk)}, {"device", node_of(layers.back())},
                          {"top-node", node_of(layers[to - 1])}, {"base-node", node_of(layers[from])},
                          {"backing-file", layers[from].native()}};  // else what QEMU calls it, which may be too long for a header (seal_disks)
  YADO_TRY(qmp.execute("block-commit", arguments.dump(), limit), "disk merge");
  YADO_TRY(finish_merges(qmp, limit), "disk merge");
  return kept + 1;
}

}  // namespace

Result<NewLayers> make_new_layers(const Qemu& qemu, const std::vector<fs::path>& bases, const fs::path& directory) {
  NewLayers made;
  for (std::size_t i = 0; i < bases.size(); ++i) {
    const auto layers = layers_of(directory, i);
    if (layers.empty()) return fail(Errc::not_found, "disk {} has no layer in {}", i, directory.native());
    made.below.push_back(layers.back());
    made.layers.push_back(next_layer(directory, i));
    YADO_TRY(make_overlay(qemu, bases[i], made.layers.back()), "new layer");
  }
  return made;
}

Status seal_disks(Qmp& qmp, const NewLayers& next, nanoseconds limit) {
  if (next.layers.empty()) return {};
  json actions = json::array();
  // A layer that QEMU makes itself gets the name of the one below into its header, which is no path but all of its layers, as JSON, where they came from another
  // host; and a header has room for 1023 bytes.
  for (std::size_t i = 0; i < next.layers.size(); ++i)
    actions.push_back({{"type", "blockdev-snapshot-sync"},
                       {"data", {{"node-name", node_of(next.below[i])}, {"snapshot-file", next.layers[i].native()}, {"mode", "existing"},
                                 {"snapshot-node-name", node_of(next.layers[i])}, {"format", "qcow2"}}}});
  YADO_TRY(qmp.execute("transaction", json{{"actions", actions}}.dump(), limit), "seal disks");
  return {};
}

Result<std::vector<std::size_t>> layers_ahead(const fs::path& directory, std::size_t disks, const std::vector<fs::path>& ahead) {
  std::vector<std::size_t> counts;
  for (std::size_t i = 0; i < disks; ++i) {
    YADO_ASSIGN(const std::size_t there, layers_ahead(layers_of(directory, i), i, ahead), "disks");
    counts.push_back(there);
  }
  return counts;
}

Result<std::uint64_t> copy_sealed(const fs::path& directory, std::size_t disks, const fs::path& to, const std::vector<std::size_t>& without) {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < disks; ++i) {
    auto layers = layers_of(directory, i);
    if (!layers.empty()) layers.pop_back();  // written at this moment
    for (std::size_t at = without.empty() ? 0 : without[i]; at < layers.size(); ++at) {
      YADO_ASSIGN(const std::uint64_t size, allocated(layers[at]), "copy disks");
      const fs::path copy = to / layers[at].filename();
      YADO_TRY(is_shared(layers[at]) ? share_disk(layers[at], copy) : copy_disk(layers[at], copy), "copy disks");
      bytes += size;
    }
  }
  return bytes;
}

Result<std::uint64_t> unsealed_bytes(const NewLayers& next) {
  std::uint64_t bytes = 0;
  for (const fs::path& layer : next.below) {
    YADO_ASSIGN(const std::uint64_t size, allocated(layer), "disks");
    bytes += size;
  }
  return bytes;
}

Status tidy_disks(Qmp& qmp, const fs::path& directory, std::size_t disks, nanoseconds limit) {
  YADO_TRY(finish_merges(qmp, limit), "disks");
  close_merged(qmp, directory, disks, limit);
  YADO_ASSIGN(const std::set<std::string> open, open_nodes(qmp, limit), "disks");
  for (std::size_t i = 0; i < disks; ++i)
    for (const fs::path& layer : layers_of(directory, i))  // oldest first
      if (!open.contains(node_of(layer)) && ::unlink(layer.c_str()) != 0) return fail_errno("unlink " + layer.native());
  return {};
}

Status merge_sealed(Qmp& qmp, const fs::path& directory, std::size_t disks, nanoseconds limit) {
  YADO_TRY(tidy_disks(qmp, directory, disks, limit), "disk merge");
  const auto mark = read_mark(directory);
  const std::vector<std::size_t> in_image = mark ? below(*mark, directory, disks).value_or(std::vector<std::size_t>(disks)) : std::vector<std::size_t>(disks);
  for (std::size_t i = 0; i < disks; ++i) {
    const auto layers = layers_of(directory, i);
    if (layers.size() < 3) continue;
    const std::size_t sealed = layers.size() - 1, since = in_image[i];
    YADO_ASSIGN(const std::size_t kept, merge_into_lowest(qmp, i, layers, 0, since, limit), "disk merge");
    YADO_ASSIGN(const std::size_t kept_since, merge_into_lowest(qmp, i, layers, since, sealed, limit), "disk merge");
    YADO_TRY(tidy_disks(qmp, directory, disks, limit), "disk merge");
    if (const auto left = layers_of(directory, i); left.size() > kept + kept_since + 1) return fail(Errc::io, "disk merge: QEMU has not merged {}", left[left.size() - 2].native());
  }
  return {};
}

}  // namespace yado::vm
