#include "base/check.hpp"

#include <cstdio>
#include <cstdlib>

namespace yado::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& why) {
  std::fprintf(stderr, "yado: broken invariant at %s:%d: %s: %s\n", file, line, condition, why.c_str());
  std::abort();
}

}  // namespace yado::detail
