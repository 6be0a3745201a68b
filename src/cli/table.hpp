#pragma once
// Tables for people: columns as wide as their widest cell.

#include <string>
#include <vector>

namespace yado::cli {

/// The first row is the head. Empty cells are shown as "-".
std::string format_table(const std::vector<std::vector<std::string>>& rows);
/// "3 MiB", "41 KiB".
std::string format_bytes(unsigned long long bytes);
/// "250 ms", "12 s", "3 min", "2 h".
std::string format_age(long long age_ms);

}  // namespace yado::cli
