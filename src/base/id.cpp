#include "base/id.hpp"

namespace yado {

bool valid_name(std::string_view text) {
  if (text.empty() || text.size() > 63) return false;
  auto alphanumeric = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  for (char c : text)
    if (!alphanumeric(c) && c != '-' && c != '.') return false;
  return alphanumeric(text.front()) && alphanumeric(text.back());
}

}  // namespace yado
