// Requests as a gate reads them from anybody, and what it then says to the instance: another server must see the same.

#include "fuzz/http.hpp"

using namespace yado;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const wire::Head& head : fuzz::check_all_ways(text, wire::Parser::Kind::request, "")) {
    wire::Request request{.method = head.method, .target = head.target, .headers = head.headers};
    const auto passed_on = wire::request_head(request, "instance", {.content_length = 0});
    if (!passed_on) continue;  // a target that is no path: the gate answers it itself
    wire::Parser parser(wire::Parser::Kind::request, 2 * fuzz::head_bytes);
    const auto step = parser.next(*passed_on);
    YADO_CHECK(step && step->event == wire::Parser::Event::head && step->consumed == passed_on->size(),
               "what was let pass is refused when it is passed on: \"{}\"", *passed_on);
    YADO_CHECK(
        parser.head().method == head.method && parser.head().target == head.target && parser.head().content_length == 0,
        "what is passed on means something else: \"{}\"", *passed_on);
  }
  return 0;
}
