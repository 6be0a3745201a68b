#pragma once
// The files in bench/results.

#include <filesystem>
#include <string>
#include <vector>

#include "drill/metrics.hpp"

namespace yado::bench {

/// {case, variant, metric, unit, n, median, p95, min, max, machine}, one row per line; numbers to a thousandth. What the file held is
/// replaced, but for the rows whose case begins with one of `kept`.
Status write_rows(const std::filesystem::path& file, const std::vector<drill::Row>& rows, const std::string& machine,
                  const std::vector<std::string>& kept = {});

}  // namespace yado::bench
