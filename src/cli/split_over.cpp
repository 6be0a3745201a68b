#include "cli/split_over.hpp"

#include <set>

#include <nlohmann/json.hpp>

#include "spec/values.hpp"

namespace yado::cli {

Result<nlohmann::json> split_over(const std::string& over, const nlohmann::json& spec, const std::string& main) {
  if (!spec.contains("vm") || !spec["vm"].contains("split"))
    return fail(Errc::invalid_argument, "--over: only a VM with \"split\" in its spec can be told where its memory lies (\"split = {{}}\": all of it where it runs, until it is told)");
  const nlohmann::json& vm = spec["vm"];
  nlohmann::json split = vm.at("split");
  split["over"] = nlohmann::json::array();
  std::set<HostId> named;
  for (std::size_t at = 0; at <= over.size();) {
    const std::size_t end = std::min(over.find(',', at), over.size());
    YADO_ASSIGN(const MemoryHost one, spec::parse_memory_host(over.substr(at, end - at)), "--over");
    at = end + 1;
    if (!named.insert(one.host).second) return fail(Errc::invalid_argument, "--over: {} stands there twice", one.host);
    if (one.host.str() != main) split["over"].push_back({{"host", one.host.str()}, {"bytes", one.bytes}});
    else if (one.bytes > 0) split["local_bytes"] = one.bytes;
  }
  if (split["over"].empty()) split["local_bytes"] = vm.at("memory_bytes");
  return split;
}

}  // namespace yado::cli
