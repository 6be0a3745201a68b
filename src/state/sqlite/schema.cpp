#include "state/sqlite/schema.hpp"

namespace yado::state {
namespace {

// "YADO": what file(1) and this code tell the database by.
constexpr std::int64_t application = 0x5941444f;

constexpr const char* steps_so_far[] = {
    // 1: everything is a text of control's; no column is there for a query that nobody makes.
    "CREATE TABLE workloads (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE events (sequence INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT;"
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;",
};

Result<std::int64_t> number(const Database& database, std::string_view sql) {
  auto statement = database.prepare(sql);
  if (!statement) return std::unexpected(std::move(statement.error()));
  auto row = statement->step();
  if (!row) return std::unexpected(std::move(row.error()));
  return *row ? statement->number(0) : 0;
}

}  // namespace

std::span<const char* const> schema_steps() { return steps_so_far; }

Status migrate(const Database& database, std::span<const char* const> steps) {
  YADO_ASSIGN(const std::int64_t owner, number(database, "PRAGMA application_id"), "schema");
  YADO_ASSIGN(const std::int64_t tables, number(database, "SELECT count(*) FROM sqlite_schema"), "schema");
  if (owner != application && (owner != 0 || tables != 0))
    return fail(Errc::unsupported, "this is the database of another program");

  YADO_ASSIGN(const std::int64_t seen, number(database, "PRAGMA user_version"), "schema");
  const auto known = static_cast<std::int64_t>(steps.size());
  if (seen > known)
    return fail(Errc::unsupported,
                "a newer yado wrote this (schema {}, this one knows {}): start that one; nothing was changed", seen,
                known);

  for (std::int64_t step = seen; step < known; ++step) {
    const std::string sql =
        fmt::format("BEGIN IMMEDIATE; {} PRAGMA application_id = {}; PRAGMA user_version = {}; COMMIT;",
                    steps[static_cast<std::size_t>(step)], application, step + 1);
    if (Status done = database.execute(sql); !done) {
      (void)database.execute("ROLLBACK");  // fails when SQLite has rolled back by itself
      return context(done.error(), fmt::format("bring the schema to version {}", step + 1));
    }
  }
  return {};
}

}  // namespace yado::state
