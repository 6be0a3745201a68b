#include "cli/split_over.hpp"

#include <nlohmann/json.hpp>

#include "base/id.hpp"
#include "spec/values.hpp"

namespace yado::cli {

Result<nlohmann::json> split_over(const std::string& over, const nlohmann::json& vm, const std::string& main) {
  nlohmann::json split = vm.at("split");
  split["over"] = nlohmann::json::array();
  for (std::size_t at = 0; at <= over.size();) {
    const std::size_t end = std::min(over.find(',', at), over.size());
    const std::string one = over.substr(at, end - at);
    at = end + 1;
    const std::size_t colon = one.find(':');
    const std::string host = one.substr(0, colon);
    if (!valid_name(host)) return fail(Errc::invalid_argument, "--over: \"{}\" is no host", one);
    std::uint64_t bytes = 0;
    if (colon != std::string::npos) {
      YADO_ASSIGN(bytes, spec::parse_size(one.substr(colon + 1)), "--over: " + one);
    }
    if (host != main) split["over"].push_back({{"host", host}});
    else if (bytes > 0) split["local_bytes"] = bytes;
  }
  if (split["over"].empty()) split["local_bytes"] = vm.at("memory_bytes");
  return split;
}

}  // namespace yado::cli
