#include "wire/http.hpp"

namespace yado::wire {

std::string_view find(const Headers& headers, std::string_view name) {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

}  // namespace yado::wire
