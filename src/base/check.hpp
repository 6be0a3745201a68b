#pragma once
// Invariants. A failed check is a defect of Yadokari itself: it prints where and why and aborts, in release builds too.

#include <fmt/format.h>

namespace yado::detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& why);
}

#define YADO_CHECK(condition, ...)                                                                              \
  do {                                                                                                          \
    if (!(condition)) [[unlikely]]                                                                              \
      ::yado::detail::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__));                 \
  } while (false)
