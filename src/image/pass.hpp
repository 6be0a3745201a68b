#pragma once
// YADO_TRY and YADO_ASSIGN without context, for steps whose error already says all there is to say. Internal.

#include "base/error.hpp"

#define YADO_PASS(expression)                                                                            \
  do {                                                                                                   \
    if (auto yado_pass = (expression); !yado_pass) return std::unexpected(std::move(yado_pass.error())); \
  } while (false)

#define YADO_TAKE(declaration, expression) YADO_TAKE_(YADO_CONCAT(yado_taken_, __LINE__), declaration, expression)
#define YADO_TAKE_(name, declaration, expression)             \
  auto name = (expression);                                   \
  if (!name) return std::unexpected(std::move(name.error())); \
  declaration = std::move(*name)
