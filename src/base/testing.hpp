#pragma once
// For tests only.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>

/// Ends the test, or only fails it, with the words of a Result's or Status's error.
#define YADO_OK(which, expression)                                    \
  do {                                                                \
    const auto& ok_result = (expression);                             \
    which(ok_result.has_value()) << ok_result.error().text();         \
  } while (false)
#define ASSERT_OK(expression) YADO_OK(ASSERT_TRUE, expression)
#define EXPECT_OK(expression) YADO_OK(EXPECT_TRUE, expression)

namespace yado {

/// What the environment says, or what is said otherwise.
inline std::string text_from(const char* variable, const std::string& otherwise) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

inline std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  return std::stoull(text_from(variable, std::to_string(otherwise)));
}

}  // namespace yado
