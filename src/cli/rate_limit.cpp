#include "cli/rate_limit.hpp"

#include "base/units.hpp"
#include "spec/values.hpp"

namespace yado::cli {

Result<std::uint64_t> parse_rate_limit(std::string_view option, std::string_view text) {
  YADO_ASSIGN(const std::uint64_t bytes, spec::parse_bytes_per_second(text), option);
  if (bytes < 1_MiB) return fail(Errc::invalid_argument, "{}: must be at least 1MiB/s; leave it out for no limit", option);
  return bytes;
}

}  // namespace yado::cli
