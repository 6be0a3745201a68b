#include "workload/vm/disk_mark.hpp"

#include <algorithm>
#include <cerrno>
#include <sstream>
#include <unistd.h>

#include "os/file.hpp"
#include "workload/vm/disk.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;

fs::path file_in(const fs::path& directory) { return directory / "disks-in-image"; }

}  // namespace

Result<DiskMark> mark_now(const fs::path& directory, std::size_t disks, std::string cut) {
  DiskMark mark{.cut = std::move(cut), .layers = {}};
  for (std::size_t i = 0; i < disks; ++i) {
    const auto layers = layers_of(directory, i);
    if (layers.empty()) return fail(Errc::not_found, "disk {} has no layer in {}", i, directory.native());
    mark.layers.push_back(layers.back().filename());
  }
  return mark;
}

Status write_mark(const fs::path& directory, const DiskMark& mark) {
  return os::replace_text(file_in(directory), fmt::format("{}\n{}\n", mark.cut, fmt::join(mark.layers, "\n")));
}

std::optional<DiskMark> read_mark(const fs::path& directory) {
  const auto text = os::read_text(file_in(directory));
  if (!text) return std::nullopt;
  std::istringstream lines(*text);
  DiskMark mark;
  if (!std::getline(lines, mark.cut) || mark.cut.empty()) return std::nullopt;
  for (std::string layer; std::getline(lines, layer);)
    if (!layer.empty()) mark.layers.push_back(std::move(layer));
  return mark;
}

Status forget_mark(const fs::path& directory) {
  if (::unlink(file_in(directory).c_str()) != 0 && errno != ENOENT) return fail_errno("unlink " + file_in(directory).native());
  return {};
}

std::optional<std::vector<std::size_t>> below(const DiskMark& mark, const fs::path& directory, std::size_t disks) {
  if (mark.layers.size() != disks) return std::nullopt;
  std::vector<std::size_t> counts;
  for (std::size_t i = 0; i < disks; ++i) {
    const auto layers = layers_of(directory, i);
    const auto first = std::ranges::find(layers, mark.layers[i], [](const fs::path& layer) { return layer.filename().native(); });
    if (first == layers.end()) return std::nullopt;
    counts.push_back(static_cast<std::size_t>(first - layers.begin()));
  }
  return counts;
}

}  // namespace yado::vm
