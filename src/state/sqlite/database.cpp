#include "state/sqlite/database.hpp"

#include <sqlite3.h>

#include <cerrno>

#include "base/check.hpp"

namespace yado::state {
namespace {

Errc code_of(int extended, int system_errno) {
  switch (extended & 0xff) {
    case SQLITE_FULL:
      return Errc::no_space;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return Errc::conflict;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return Errc::corrupt;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return Errc::permission;
    case SQLITE_CANTOPEN:
      return system_errno == ENOSPC ? Errc::no_space : Errc::permission;
    case SQLITE_IOERR:
      return system_errno == ENOSPC || system_errno == EDQUOT ? Errc::no_space : Errc::io;
    default:
      return Errc::internal;
  }
}

// What a person can do about it.
std::string_view advice(Errc code) {
  switch (code) {
    case Errc::no_space:
      return "; make room on that disk";
    case Errc::conflict:
      return "; another process has it open: is a control running?";
    case Errc::corrupt:
      return "; put back a copy of it, or move it and its -wal file away to begin with an empty cluster";
    case Errc::permission:
      return "; the directory and the file must be writable";
    default:
      return "";
  }
}

}  // namespace

void Statement::Finalize::operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }

Statement& Statement::bind(std::string_view text) {
  const int done = sqlite3_bind_text64(statement_.get(), ++bound_, text.data() ? text.data() : "", text.size(),
                                       SQLITE_STATIC, SQLITE_UTF8);
  YADO_CHECK(done == SQLITE_OK, "bind text {}: {}", bound_, done);
  return *this;
}

Statement& Statement::bind(std::int64_t number) {
  const int done = sqlite3_bind_int64(statement_.get(), ++bound_, number);
  YADO_CHECK(done == SQLITE_OK, "bind number {}: {}", bound_, done);
  return *this;
}

Result<bool> Statement::step() {
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database_->failure();
}

Status Statement::run() {
  for (;;) {
    auto more = step();
    if (!more) return std::unexpected(std::move(more.error()));
    if (!*more) return {};
  }
}

std::string Statement::text(int column) {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
  return text ? std::string(text, static_cast<std::size_t>(sqlite3_column_bytes(statement_.get(), column)))
              : std::string();
}

std::int64_t Statement::number(int column) { return sqlite3_column_int64(statement_.get(), column); }

void Database::Close::operator()(sqlite3* database) const { sqlite3_close_v2(database); }

Result<Database> Database::open(const std::filesystem::path& file) {
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(file.c_str(), &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  Database database(file, raw);  // also after a failure: SQLite wants it closed
  if (code != SQLITE_OK) return raw ? database.failure() : fail(Errc::internal, "no memory for SQLite");
  sqlite3_extended_result_codes(raw, 1);
  // Texts in the database are data of this program alone; a forged schema must not be able to call anything.
  sqlite3_db_config(raw, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(raw, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  return database;
}

Result<Statement> Database::prepare(std::string_view sql) const {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database_.get(), sql.data(), static_cast<int>(sql.size()), &statement, nullptr) != SQLITE_OK)
    return failure();
  return Statement(this, statement);
}

Status Database::execute(const std::string& sql) const {
  if (sqlite3_exec(database_.get(), sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) return failure();
  return {};
}

Result<std::string> Database::value(std::string_view sql) const {
  auto statement = prepare(sql);
  if (!statement) return std::unexpected(std::move(statement.error()));
  auto row = statement->step();
  if (!row) return std::unexpected(std::move(row.error()));
  return *row ? statement->text(0) : std::string();
}

std::unexpected<Error> Database::failure() const {
  const Errc code = code_of(sqlite3_extended_errcode(database_.get()), sqlite3_system_errno(database_.get()));
  return fail(code, "{}: {}{}", file_.native(), sqlite3_errmsg(database_.get()), advice(code));
}

}  // namespace yado::state
