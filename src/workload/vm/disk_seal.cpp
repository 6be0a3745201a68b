#include "workload/vm/disk_seal.hpp"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "workload/vm/disk.hpp"

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

}  // namespace

Status seal_disks(Qmp& qmp, const fs::path& directory, std::size_t disks, nanoseconds limit) {
  if (disks == 0) return {};
  json actions = json::array();
  std::vector<fs::path> made;
  for (std::size_t i = 0; i < disks; ++i) {
    const auto layers = layers_of(directory, i);
    if (layers.empty()) return fail(Errc::not_found, "disk {} has no layer in {}", i, directory.native());
    made.push_back(next_layer(directory, i));
    actions.push_back({{"type", "blockdev-snapshot-sync"},
                       {"data", {{"node-name", node_of(layers.back())}, {"snapshot-file", made.back().native()},
                                 {"snapshot-node-name", node_of(made.back())}, {"format", "qcow2"}}}});
  }
  const auto sealed = qmp.execute("transaction", json{{"actions", actions}}.dump(), limit);
  if (sealed) return {};
  // QEMU leaves the files of a transaction that failed. After a time-out nobody knows, and they may be in use.
  if (sealed.error().code == Errc::io)
    for (const fs::path& layer : made) ::unlink(layer.c_str());
  const bool full = sealed.error().message.find("No space left") != std::string::npos;
  return fail(full ? Errc::no_space : sealed.error().code, "seal disks: {}", sealed.error().message);
}

Status copy_sealed(const fs::path& directory, std::size_t disks, const fs::path& to) {
  for (std::size_t i = 0; i < disks; ++i) {
    auto layers = layers_of(directory, i);
    if (!layers.empty()) layers.pop_back();  // written at this moment
    for (const fs::path& layer : layers) YADO_TRY(copy_disk(layer, to / layer.filename()), "copy disks");
  }
  return {};
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

Status merge_sealed(Qmp& qmp, const fs::path& directory, std::size_t disks, nanoseconds limit) {
  for (std::size_t i = 0; i < disks; ++i) {
    const auto layers = layers_of(directory, i);
    if (layers.size() < 3) continue;
    const json arguments = {{"job-id", fmt::format("merge-{}", i)}, {"device", node_of(layers.back())},
                            {"top-node", node_of(layers[layers.size() - 2])}, {"base-node", node_of(layers.front())}};
    YADO_TRY(qmp.execute("block-commit", arguments.dump(), limit), "disk merge");
    YADO_TRY(finish_merges(qmp, limit), "disk merge");
    // Did it succeed? Then the layers are no longer part of what QEMU has open.
    YADO_ASSIGN(const std::string open, qmp.execute("query-named-block-nodes", R"({"flat": true})", limit), "disk merge");
    const json nodes = json::parse(open, nullptr, false);
    for (const json& node : nodes)
      if (node.is_object() && node.value("node-name", "") == node_of(layers[layers.size() - 2]))
        return fail(Errc::io, "disk merge: QEMU has not merged {}", layers[layers.size() - 2].native());
    for (std::size_t k = 1; k + 1 < layers.size(); ++k)
      if (::unlink(layers[k].c_str()) != 0) return fail_errno("unlink " + layers[k].native());
  }
  return {};
}

}  // namespace yado::vm
