#include "state/sqlite/sqlite.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.hpp"
#include "state/sqlite/database.hpp"
#include "state/sqlite/schema.hpp"

namespace yado::state {
namespace {

namespace fs = std::filesystem;

class SqliteStore : public Store {
 public:
  explicit SqliteStore(Database database) : database_(std::move(database)) {}

  Status put_workload(std::string_view name, std::string_view record) override {
    return put("INSERT OR REPLACE INTO workloads VALUES (?1, ?2)", name, record);
  }

  Status remove_workload(std::string_view name) override {
    YADO_TRY(database_.execute(durable), "remove workload");
    YADO_ASSIGN(Statement statement, database_.prepare("DELETE FROM workloads WHERE name = ?1"), "remove workload");
    return statement.bind(name).run();
  }

  Result<std::vector<std::string>> workloads() override {
    YADO_ASSIGN(Statement statement, database_.prepare("SELECT record FROM workloads ORDER BY name"), "workloads");
    std::vector<std::string> records;
    for (;;) {
      YADO_ASSIGN(const bool row, statement.step(), "workloads");
      if (!row) return records;
      records.push_back(statement.text(0));
    }
  }

  Status put_meta(std::string_view key, std::string_view value) override {
    return put("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", key, value);
  }

  Result<std::optional<std::string>> meta(std::string_view key) override {
    YADO_ASSIGN(Statement statement, database_.prepare("SELECT value FROM meta WHERE key = ?1"), "meta");
    YADO_ASSIGN(const bool row, statement.bind(key).step(), "meta");
    if (!row) return std::optional<std::string>();
    return std::optional(statement.text(0));
  }

  Status append_event(std::uint64_t sequence, std::string_view line, std::uint64_t first_kept) override {
    // The write-ahead log takes it without an fsync: it survives this process, and the next durable write carries it.
    YADO_TRY(database_.execute("PRAGMA synchronous = NORMAL"), "event");
    YADO_ASSIGN(Statement insert, database_.prepare("INSERT OR REPLACE INTO events VALUES (?1, ?2)"), "event");
    YADO_TRY(insert.bind(signed_number(sequence)).bind(line).run(), "event");
    YADO_ASSIGN(Statement prune, database_.prepare("DELETE FROM events WHERE sequence < ?1"), "event");
    return prune.bind(signed_number(first_kept)).run();
  }

  Result<std::vector<std::pair<std::uint64_t, std::string>>> events(std::size_t limit) override {
    YADO_ASSIGN(Statement statement,
                database_.prepare("SELECT sequence, line FROM events ORDER BY sequence DESC LIMIT ?1"), "events");
    statement.bind(signed_number(limit));
    std::vector<std::pair<std::uint64_t, std::string>> events;
    for (;;) {
      YADO_ASSIGN(const bool row, statement.step(), "events");
      if (!row) break;
      events.emplace_back(static_cast<std::uint64_t>(statement.number(0)), statement.text(1));
    }
    std::ranges::reverse(events);
    return events;
  }

 private:
  static constexpr const char* durable = "PRAGMA synchronous = FULL";

  // Each statement is a transaction of its own.
  Status put(const char* sql, std::string_view key, std::string_view value) {
    YADO_TRY(database_.execute(durable), "put");
    YADO_ASSIGN(Statement statement, database_.prepare(sql), "put");
    return statement.bind(key).bind(value).run();
  }

  static std::int64_t signed_number(std::uint64_t number) {
    return static_cast<std::int64_t>(std::min(number, static_cast<std::uint64_t>(INT64_MAX)));
  }

  Database database_;
};

// SQLite would make it readable for all (0644); its -wal file takes over the mode.
Status make_private(const fs::path& file) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return fail_errno(fmt::format("open {}", file.native()));
  const bool done = ::fchmod(fd, 0600) == 0;
  const int reason = errno;
  ::close(fd);
  if (!done) return fail_errno(reason, fmt::format("chmod {}", file.native()));
  return {};
}

// A file that SQLite never synced a directory for may be gone after a power loss, with everything in it.
Status sync_directory(const fs::path& directory) {
  const int fd = ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return fail_errno(fmt::format("open {}", directory.native()));
  const bool done = ::fsync(fd) == 0;
  const int reason = errno;
  ::close(fd);
  if (!done) return fail_errno(reason, fmt::format("fsync {}", directory.native()));
  return {};
}

}  // namespace

Result<std::unique_ptr<Store>> open_sqlite(const fs::path& file) {
  YADO_TRY(make_private(file), "store");
  YADO_ASSIGN(Database database, Database::open(file), "store");
  // The lock is taken by the first access and kept until this process ends, however it ends.
  YADO_TRY(database.execute("PRAGMA locking_mode = EXCLUSIVE"), "store");
  YADO_ASSIGN(const std::string mode, database.value("PRAGMA journal_mode = WAL"), "store");
  if (mode != "wal")
    return fail(Errc::unsupported, "store: {}: this file system allows no write-ahead log", file.native());
  YADO_TRY(database.execute("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; BEGIN IMMEDIATE; COMMIT"), "store");
  YADO_ASSIGN(const std::string check, database.value("PRAGMA integrity_check(1)"), "store");
  if (check != "ok")
    return fail(
        Errc::corrupt,
        "store: {}: {}; put back a copy of it, or move it and its -wal file away to begin with an empty cluster",
        file.native(), check);
  YADO_TRY(migrate(database, schema_steps()), fmt::format("store: {}", file.native()));
  YADO_TRY(sync_directory(file.parent_path()), "store");
  return std::make_unique<SqliteStore>(std::move(database));
}

}  // namespace yado::state
