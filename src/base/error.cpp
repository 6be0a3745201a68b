#include "base/error.hpp"

#include <array>
#include <cerrno>
#include <cstring>

namespace yado {
namespace {

struct Row {
  Errc code;
  std::string_view name;
  bool retryable;
};

constexpr std::array rows{
    Row{Errc::invalid_argument, "invalid-argument", false},
    Row{Errc::not_found, "not-found", false},
    Row{Errc::already_exists, "already-exists", false},
    Row{Errc::stale_epoch, "stale-epoch", false},
    Row{Errc::not_owner, "not-owner", false},
    Row{Errc::unavailable, "unavailable", true},
    Row{Errc::timed_out, "timed-out", true},
    Row{Errc::refused, "refused", true},
    Row{Errc::corrupt, "corrupt", false},
    Row{Errc::no_space, "no-space", true},
    Row{Errc::permission, "permission", false},
    Row{Errc::unsupported, "unsupported", false},
    Row{Errc::application, "application", true},
    Row{Errc::canceled, "canceled", true},
    Row{Errc::rate_limited, "rate-limited", true},
    Row{Errc::io, "io", true},
    Row{Errc::internal, "internal", false},
    Row{Errc::conflict, "conflict", false},
};

const Row& row_of(Errc code) {
  for (const Row& row : rows)
    if (row.code == code) return row;
  return rows[16];
}

Errc code_of_errno(int error_number) {
  switch (error_number) {
    case ENOENT: case ESRCH: case ENODEV: return Errc::not_found;  // ENODEV: removed since it was opened (kernfs)
    case EEXIST: return Errc::already_exists;
    case EACCES: case EPERM: return Errc::permission;
    case ENOSPC: case EDQUOT: return Errc::no_space;
    case ECONNREFUSED: return Errc::refused;
    case ETIMEDOUT: return Errc::timed_out;
    // A reset in the middle proves less than a refusal: something did listen there.
    case ECONNRESET: case EPIPE: case EHOSTUNREACH: case ENETUNREACH: case EAGAIN: return Errc::unavailable;
    case EINVAL: return Errc::invalid_argument;
    case ENOSYS: case EOPNOTSUPP: return Errc::unsupported;
    case ECANCELED: return Errc::canceled;
    default: return Errc::io;
  }
}

}  // namespace

std::string_view name_of(Errc code) { return row_of(code).name; }

Errc errc_from_name(std::string_view name) {
  for (const Row& row : rows)
    if (row.name == name) return row.code;
  return Errc::internal;
}

bool retryable(Errc code) { return row_of(code).retryable; }

std::string Error::text() const { return fmt::format("{} ({})", message, name_of(code)); }

std::unexpected<Error> context(const Error& error, std::string_view doing) {
  return std::unexpected(Error{error.code, fmt::format("{}: {}", doing, error.message)});
}

std::unexpected<Error> fail_errno(std::string_view doing) { return fail_errno(errno, doing); }

std::unexpected<Error> fail_errno(int error_number, std::string_view doing) {
  return std::unexpected(
      Error{code_of_errno(error_number), fmt::format("{}: {}", doing, std::strerror(error_number))});
}

}  // namespace yado
