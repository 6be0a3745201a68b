// A workload's TOML file: anybody's text. Whatever the bytes, it is a spec or an error that says where it is wrong, and
// a spec survives the way to control and its store.

#include "spec/spec.hpp"

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "base/check.hpp"

using namespace yado;

namespace {

void check_error(const Error& error) {
  YADO_CHECK(error.code == Errc::invalid_argument, "{}", error.text());
  std::string_view rest = error.message;
  YADO_CHECK(!rest.empty(), "an error without a text");
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    YADO_CHECK(line.starts_with("site.toml:"), "a line that does not say where: \"{}\"", line);
    for (char c : line)
      YADO_CHECK(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f, "a control character in: \"{}\"", line);
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto spec = spec::parse(text, "site.toml", {{"HOME", "/home/somebody"}, {"EMPTY", ""}});
  if (!spec) {
    check_error(spec.error());
    return 0;
  }
  YADO_CHECK(valid_name(spec->name.str()), "\"{}\"", spec->name);
  YADO_CHECK(!spec->container.command.empty() && !spec->service.hosts.empty() && spec->service.port != 0,
             "an incomplete spec was accepted");
  const auto again = api::parse<WorkloadSpec>(api::dump(nlohmann::json(*spec)));
  YADO_CHECK(again, "{}", again.error().text());
  YADO_CHECK(*again == *spec, "the spec changed on its way through JSON");
  return 0;
}
