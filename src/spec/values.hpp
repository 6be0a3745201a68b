#pragma once
// The little languages inside specs: "512MiB", "10min", "10/min", "${HOME}/site". Pure; the CLI's flags speak them,
// too. Errors are `invalid_argument` and say what would be right; the caller puts the place in front.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/workload.hpp"

namespace yado::spec {

/// What `${NAME}` stands for. Not the process's environment by itself: the caller says which variables a spec may see.
using Environment = std::map<std::string, std::string>;

struct Rate {
  std::uint32_t count = 0;
  milliseconds per{0};
  bool operator==(const Rate&) const = default;
};

/// "250ms", "5s", "10min", "1h", "7d": a whole number and a unit; more than nothing, at most 10 years.
Result<milliseconds> parse_duration(std::string_view text);
/// "4096B", "64KiB", "512MiB", "1.5GiB", "1TiB" in bytes.
Result<std::uint64_t> parse_size(std::string_view text);
/// "50MiB/s" in bytes per second, more than nothing.
Result<std::uint64_t> parse_bytes_per_second(std::string_view text);
/// "h2", or with the most that it keeps "h2:512MiB".
Result<MemoryHost> parse_memory_host(std::string_view text);
/// "10/min", "1/5s": a count of at least 1 and a duration, whose number may be left out.
Result<Rate> parse_rate(std::string_view text);
/// Replaces every "${NAME}"; "$${" stands for "${" itself, any other '$' for itself.
Result<std::string> expand(std::string_view text, const Environment& environment);

/// The candidate that somebody who wrote `text` most likely meant, or empty.
std::string_view nearest(std::string_view text, std::span<const std::string_view> candidates);

/// `text` with control characters escaped, so that it stays on one line.
std::string printable(std::string_view text);
/// `text` in quotes with control characters escaped and cut at 60 bytes: safe inside a line of an error.
std::string quote(std::string_view text);

}  // namespace yado::spec
