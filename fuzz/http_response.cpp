// Answers of instances and of other roles. How an answer ends depends on what was asked.

#include "fuzz/http.hpp"

using namespace yado;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (std::string_view asked : {"GET", "HEAD", "CONNECT"})
    for (const wire::Head& head : fuzz::check_all_ways(text, wire::Parser::Kind::response, asked)) {
      const bool bodiless = asked == "HEAD" || head.status / 100 == 1 || head.status == 204 || head.status == 304;
      YADO_CHECK(!bodiless || head.body == wire::BodyKind::none, "a body of an answer that has none");
    }
  return 0;
}
