#pragma once
// The part of SQLite that the store needs, with Result instead of codes. Internal to src/state/sqlite.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace yado::state {

class Database;

/// A prepared statement. Parameters are bound in order; texts must live until the statement was run.
class Statement {
 public:
  Statement& bind(std::string_view text);
  Statement& bind(std::int64_t number);
  /// True while there is a row.
  Result<bool> step();
  /// Runs it to the end.
  Status run();
  std::string text(int column);
  std::int64_t number(int column);

 private:
  friend class Database;
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const;
  };
  Statement(const Database* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
  const Database* database_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
  int bound_ = 0;
};

class Database {
 public:
  /// The file must exist.
  static Result<Database> open(const std::filesystem::path& file);

  Result<Statement> prepare(std::string_view sql) const;
  /// One or more statements whose rows nobody wants.
  Status execute(const std::string& sql) const;
  /// The first column of the first row.
  Result<std::string> value(std::string_view sql) const;

  /// What SQLite says of its last call, as an Error that names the file.
  std::unexpected<Error> failure() const;

 private:
  struct Close {
    void operator()(sqlite3* database) const;
  };
  Database(std::filesystem::path file, sqlite3* database) : file_(std::move(file)), database_(database) {}
  std::filesystem::path file_;
  std::unique_ptr<sqlite3, Close> database_;
};

}  // namespace yado::state
