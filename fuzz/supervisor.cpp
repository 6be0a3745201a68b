// What a supervisor reads when it starts (supervisor.json) and what an agent reads of a supervisor (its description).

#include <nlohmann/json.hpp>

#include "agent/supervisor/protocol.hpp"
#include "api/json.hpp"
#include "base/check.hpp"

using namespace yado;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = supervisor::config_from_text(text);
  if (config) {
    const std::string written = supervisor::to_text(*config);
    const auto again = supervisor::config_from_text(written);
    YADO_CHECK(again, "{}", again.error().text());
    YADO_CHECK(supervisor::to_text(*again) == written, "the config changed when it was written and read again");
    YADO_CHECK(again->spec == config->spec, "the spec changed when it was written and read again");
  } else {
    YADO_CHECK(config.error().code == Errc::invalid_argument, "{}", config.error().text());
  }

  const auto tree = api::parse_json(text);
  if (!tree) return 0;
  Status status;
  supervisor::Description description;
  supervisor::read_json(*tree, "", status, description);
  if (!status) return 0;
  const nlohmann::json written = description;
  supervisor::Description again;
  supervisor::read_json(written, "", status, again);
  YADO_CHECK(status, "{}", status.error().text());
  YADO_CHECK(nlohmann::json(again) == written, "the description changed when it was written and read again");
  return 0;
}
