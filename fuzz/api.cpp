// The JSON that roles send each other, read as everything it could be taken for. What is accepted must come out the
// same when it is written and read again: control would otherwise store something else than it was told.

#include <nlohmann/json.hpp>

#include "api/calls.hpp"
#include "api/json.hpp"
#include "base/check.hpp"

using namespace yado;

namespace {

void check_error(const Error& error) {
  YADO_CHECK(error.code == Errc::invalid_argument && !error.message.empty(), "{}", error.text());
}

template <class T>
void check(const nlohmann::json& tree) {
  const auto value = api::from_json_value<T>(tree);
  if (!value) return check_error(value.error());
  const auto again = api::parse<T>(api::dump(nlohmann::json(*value)));
  YADO_CHECK(again, "{}", again.error().text());
  YADO_CHECK(*again == *value, "a value changed when it was written and read again: {}", api::dump(tree));
}

void check_call(std::string_view kind, std::string_view text) {
  const auto call = api::parse_call(kind, text);
  if (!call) return check_error(call.error());
  YADO_CHECK(name_of(*call) == kind, "a {} was read as a {}", kind, name_of(*call));
  const auto again = api::parse_call(kind, api::dump(nlohmann::json(*call)));
  YADO_CHECK(again, "{}", again.error().text());
  YADO_CHECK(*again == *call, "a {} changed when it was written and read again", kind);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto tree = api::parse_json(text);
  if (!tree) {
    check_error(tree.error());
    return 0;
  }
  check<WorkloadSpec>(*tree);
  check<HostReport>(*tree);
  check<RouteTable>(*tree);
  check<CallReply>(*tree);
  check<Event>(*tree);
  for (std::string_view kind : {"raise", "prepare", "build", "pull", "stop", "sleep", "drop-image", "inspect"})
    check_call(kind, text);
  YADO_CHECK(!api::parse_call("no-such-call", text), "an unknown call was accepted");
  return 0;
}
