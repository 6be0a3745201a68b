#include "rows.hpp"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "os/file.hpp"

namespace yado::bench {
namespace {

using nlohmann::json;

std::vector<std::string> lines_to_keep(const std::filesystem::path& file, const std::vector<std::string>& kept) {
  std::vector<std::string> lines;
  if (kept.empty()) return lines;
  const json old = json::parse(os::read_text(file).value_or("[]"), nullptr, false);
  if (!old.is_array()) return lines;
  for (const json& row : old) {
    const std::string scenario = row.value("case", "");
    if (std::ranges::any_of(kept, [&](const std::string& prefix) { return scenario.starts_with(prefix); })) lines.push_back(row.dump());
  }
  return lines;
}

}  // namespace

Status write_rows(const std::filesystem::path& file, const std::vector<drill::Row>& rows, const std::string& machine, const std::vector<std::string>& kept) {
  std::vector<std::string> lines = lines_to_keep(file, kept);
  for (const drill::Row& one : rows) {
    json row = one;
    for (const char* number : {"median", "p95", "min", "max"}) row[number] = std::round(row[number].get<double>() * 1000) / 1000;
    row["machine"] = machine;
    lines.push_back(row.dump());
  }
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  return os::replace_text(file, fmt::format("[\n{}\n]\n", fmt::join(lines, ",\n")), 0644);
}

}  // namespace yado::bench
