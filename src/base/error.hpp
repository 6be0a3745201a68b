#pragma once
// Results and the one numbered list of errors.
//
// Expected outcomes are `Result<T>`; a caller adds what it was doing with `context()` on the way up, so that
// the text a person reads goes from the general to the particular:
//   "restore site.4: image site-2f1c: part criu: pages-1.img: checksum differs".
// Broken invariants stop the program by YADO_CHECK (check.hpp). Exceptions stay behind the library that throws.

#include <expected>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace yado {

/// Numbers are part of the API (docs/api.md): never reused, only added.
enum class Errc : int {
  invalid_argument = 1,   ///< the caller's input is wrong; repeating it cannot help
  not_found = 2,
  already_exists = 3,
  stale_epoch = 4,        ///< the call carries an epoch older than one already granted
  not_owner = 5,
  unavailable = 6,        ///< nobody answers, or not now: worth repeating
  timed_out = 7,
  refused = 8,            ///< connection refused: positive proof that nobody listens there
  corrupt = 9,            ///< a checksum, a length or a format is wrong
  no_space = 10,
  permission = 11,
  unsupported = 12,       ///< this machine or this kind of workload cannot do it
  application = 13,       ///< the application inside exited, never got ready, or answered wrongly
  canceled = 14,
  rate_limited = 15,
  io = 16,                ///< any other failure of the operating system
  internal = 17,
  conflict = 18,          ///< the object is in a state that does not allow it
};

std::string_view name_of(Errc code);
/// The inverse of name_of; `internal` for an unknown name.
Errc errc_from_name(std::string_view name);
/// True when the same call may succeed later without anybody changing anything.
bool retryable(Errc code);

struct Error {
  Errc code = Errc::internal;
  std::string message;

  /// "message (code-name)".
  std::string text() const;
};

template <class T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

template <class... Args>
[[nodiscard]] std::unexpected<Error> fail(Errc code, fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

/// The same error, with what the caller was doing put in front.
[[nodiscard]] std::unexpected<Error> context(const Error& error, std::string_view doing);

/// `errno` turned into an error: the only place where errno is read. `doing` names the call and its arguments.
[[nodiscard]] std::unexpected<Error> fail_errno(std::string_view doing);
[[nodiscard]] std::unexpected<Error> fail_errno(int error_number, std::string_view doing);

}  // namespace yado

/// Return early with the error of a Result, adding context: `YADO_TRY(open_it(), "image store")`.
#define YADO_TRY(expression, doing)                                          \
  do {                                                                       \
    if (auto yado_try = (expression); !yado_try) return ::yado::context(yado_try.error(), doing); \
  } while (false)

#define YADO_CONCAT_(a, b) a##b
#define YADO_CONCAT(a, b) YADO_CONCAT_(a, b)
/// `YADO_ASSIGN(auto fd, open_it(), "image store")`: the value, or return early with context.
#define YADO_ASSIGN(declaration, expression, doing) \
  YADO_ASSIGN_(YADO_CONCAT(yado_result_, __LINE__), declaration, expression, doing)
#define YADO_ASSIGN_(name, declaration, expression, doing)   \
  auto name = (expression);                                  \
  if (!name) return ::yado::context(name.error(), doing);    \
  declaration = std::move(*name)
