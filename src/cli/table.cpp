#include "cli/table.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace yado::cli {

std::string format_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max({widths[i], row[i].size(), std::size_t{1}});
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i)
      line += fmt::format("{:<{}}  ", row[i].empty() ? "-" : row[i], widths[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string format_bytes(unsigned long long bytes) {
  if (bytes >= 10ull << 30) return fmt::format("{} GiB", bytes >> 30);
  if (bytes >= 10ull << 20) return fmt::format("{} MiB", bytes >> 20);
  if (bytes >= 10ull << 10) return fmt::format("{} KiB", bytes >> 10);
  return fmt::format("{} B", bytes);
}

std::string format_age(long long age_ms) {
  if (age_ms < 1000) return fmt::format("{} ms", age_ms);
  if (age_ms < 120'000) return fmt::format("{} s", age_ms / 1000);
  if (age_ms < 120 * 60'000) return fmt::format("{} min", age_ms / 60'000);
  return fmt::format("{} h", age_ms / 3'600'000);
}

}  // namespace yado::cli
