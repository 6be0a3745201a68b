#include "state/sqlite/sqlite.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "base/check.hpp"
#include "state/sqlite/schema.hpp"

namespace yado::state {
namespace {

namespace fs = std::filesystem;
using Events = std::vector<std::pair<std::uint64_t, std::string>>;

class SqliteStoreTest : public ::testing::Test {
 protected:
  SqliteStoreTest() {
    std::string path = (fs::temp_directory_path() / "yado-state-XXXXXX").native();
    YADO_CHECK(::mkdtemp(path.data()) != nullptr, "mkdtemp {}", path);
    directory_ = path;
  }
  ~SqliteStoreTest() override {
    store_.reset();
    std::error_code ignored;
    fs::remove_all(directory_, ignored);
  }

  fs::path file() const { return directory_ / "control.db"; }

  void reopen() {
    store_.reset();
    auto opened = open_sqlite(file());
    ASSERT_TRUE(opened) << opened.error().message;
    store_ = std::move(*opened);
  }

  Error open_error() {
    auto opened = open_sqlite(file());
    if (opened) return {Errc::internal, "(opened)"};
    return opened.error();
  }

  // In a child, so that a mount or a kill stays there. Its exit code is the answer.
  static int in_child(const std::function<int()>& work) {
    const pid_t child = ::fork();
    YADO_CHECK(child >= 0, "fork");
    if (child == 0) ::_exit(work());
    int status = 0;
    YADO_CHECK(::waitpid(child, &status, 0) == child, "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  fs::path directory_;
  std::unique_ptr<Store> store_;
};

constexpr int cannot_mount = 77;

bool private_tmpfs(const fs::path& directory, const char* options) {
  return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", directory.c_str(), "tmpfs", 0, options) == 0;
}

TEST_F(SqliteStoreTest, WhatWasPutIsThereAfterReopening) {
  reopen();
  EXPECT_EQ(store_->workloads(), std::vector<std::string>{});
  EXPECT_TRUE(store_->put_workload("site", "old"));
  EXPECT_TRUE(store_->put_workload("site", R"({"name":"site"})"));
  EXPECT_TRUE(store_->put_workload("a", std::string("nul\0inside", 10)));
  EXPECT_TRUE(store_->put_workload("gone", "x"));
  EXPECT_TRUE(store_->remove_workload("gone"));
  EXPECT_TRUE(store_->remove_workload("never there"));
  EXPECT_TRUE(store_->put_meta("cluster", "c-1"));
  reopen();
  EXPECT_EQ(store_->workloads(), (std::vector<std::string>{std::string("nul\0inside", 10), R"({"name":"site"})"}));
  EXPECT_EQ(*store_->meta("cluster"), "c-1");
  EXPECT_EQ(*store_->meta("missing"), std::nullopt);
}

TEST_F(SqliteStoreTest, TextsAreDataAndNeverSql) {
  reopen();
  const std::string evil = "'); DROP TABLE workloads; --";
  EXPECT_TRUE(store_->put_workload(evil, evil));
  EXPECT_EQ(store_->workloads(), std::vector<std::string>{evil});
}

TEST_F(SqliteStoreTest, EventsAreKeptInOrderAndTheOldestGoFirst) {
  reopen();
  for (std::uint64_t n = 1; n <= 10; ++n) EXPECT_TRUE(store_->append_event(n, std::to_string(n), n > 4 ? n - 4 : 1));
  EXPECT_TRUE(store_->append_event(10, "ten", 6)) << "the same number again";
  reopen();
  EXPECT_EQ(store_->events(100), (Events{{6, "6"}, {7, "7"}, {8, "8"}, {9, "9"}, {10, "ten"}}));
  EXPECT_EQ(store_->events(2), (Events{{9, "9"}, {10, "ten"}}));
  EXPECT_EQ(store_->events(0), Events{});
}

TEST_F(SqliteStoreTest, OnlyItsOwnerCanReadIt) {
  ::close(::open(file().c_str(), O_CREAT | O_WRONLY, 0644));
  reopen();
  EXPECT_TRUE(store_->put_workload("site", "secret"));
  for (const auto& entry : fs::directory_iterator(directory_))
    EXPECT_EQ(entry.status().permissions(), fs::perms(0600)) << entry.path();
}

TEST_F(SqliteStoreTest, ASecondControlIsRefused) {
  reopen();
  const Error error = open_error();
  EXPECT_EQ(error.code, Errc::conflict);
  EXPECT_NE(error.message.find("is a control running?"), std::string::npos) << error.message;
  EXPECT_EQ(in_child([&] { return open_error().code == Errc::conflict ? 0 : 1; }), 0) << "from another process";
  EXPECT_TRUE(store_->put_workload("site", "x")) << "the first goes on";
  store_.reset();
  EXPECT_TRUE(open_sqlite(file()));
}

TEST_F(SqliteStoreTest, AFileThatIsNoDatabaseIsLeftAsItIs) {
  std::ofstream(file()) << std::string(10'000, 'x');
  const Error error = open_error();
  EXPECT_EQ(error.code, Errc::corrupt);
  EXPECT_NE(error.message.find(file().native()), std::string::npos) << error.message;
  EXPECT_NE(error.message.find("move it"), std::string::npos) << error.message;
  EXPECT_EQ(fs::file_size(file()), 10'000U);
}

TEST_F(SqliteStoreTest, DamageInTheMiddleIsFoundWhenItIsOpened) {
  reopen();
  for (int n = 0; n < 500; ++n)
    EXPECT_TRUE(store_->append_event(static_cast<std::uint64_t>(n), std::string(200, 'x'), 0));
  store_.reset();  // checkpoints the write-ahead log
  const auto size = fs::file_size(file());
  ASSERT_GT(size, 50'000U);
  {
    std::fstream damaged(file(), std::ios::in | std::ios::out | std::ios::binary);
    damaged.seekp(static_cast<std::streamoff>(size / 4096 / 2 * 4096));
    damaged << std::string(4096, '\xa5');
  }
  EXPECT_EQ(open_error().code, Errc::corrupt);
  fs::resize_file(file(), size / 2);
  EXPECT_EQ(open_error().code, Errc::corrupt) << "cut short";
}

TEST_F(SqliteStoreTest, AMissingDirectoryIsNamed) {
  auto opened = open_sqlite(directory_ / "missing/control.db");
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::not_found);
  EXPECT_NE(opened.error().message.find("missing/control.db"), std::string::npos);
}

TEST_F(SqliteStoreTest, AReadOnlyDirectoryIsAnErrorThatSaysSo) {
  const fs::path mounted = directory_ / "mounted";
  fs::create_directory(mounted);
  const int outcome = in_child([&] {
    if (!private_tmpfs(mounted, "size=4m")) return cannot_mount;
    auto first = open_sqlite(mounted / "control.db");
    if (!first || !(*first)->put_workload("site", "x")) return 1;
    first->reset();
    if (::mount(nullptr, mounted.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) return cannot_mount;
    auto second = open_sqlite(mounted / "control.db");
    if (second) return 2;
    return second.error().message.find("ead-only file system") != std::string::npos ? 0 : 3;
  });
  if (outcome == cannot_mount) GTEST_SKIP() << "not root";
  EXPECT_EQ(outcome, 0);
}

TEST_F(SqliteStoreTest, AFullDiskLosesNothingAndIsOverWhenThereIsRoom) {
  const fs::path mounted = directory_ / "mounted";
  fs::create_directory(mounted);
  const int outcome = in_child([&] {
    if (!private_tmpfs(mounted, "size=1m")) return cannot_mount;
    auto opened = open_sqlite(mounted / "control.db");
    if (!opened) return 1;
    Store& store = **opened;
    if (!store.put_workload("before", "kept")) return 2;
    std::ofstream(mounted / "filler") << std::string(300'000, 'f');

    std::vector<std::string> acknowledged{"kept"};
    Status put;
    for (int n = 100; n < 400; ++n) {
      put = store.put_workload(std::to_string(n), std::string(10'000, 'x'));
      if (!put) break;
    }
    if (put) return 3;
    if (put.error().code != Errc::no_space) return 4;
    if (store.append_event(1, std::string(10'000, 'e'), 0)) return 5;

    auto during = store.workloads();
    if (!during || during->back() != "kept") return 6;
    fs::remove(mounted / "filler");
    if (!store.put_workload("z", "after")) return 7;
    opened->reset();
    auto again = open_sqlite(mounted / "control.db");
    if (!again) return 8;
    auto after = (*again)->workloads();
    if (!after || after->size() != during->size() + 1 || after->back() != "after") return 9;
    after->pop_back();
    return *after == *during ? 0 : 10;
  });
  if (outcome == cannot_mount) GTEST_SKIP() << "not root";
  EXPECT_EQ(outcome, 0);
}

// A writer is killed in the middle: what it had been told is durable is there, and the file is whole.
TEST_F(SqliteStoreTest, AKilledWriterLosesNothingThatWasAcknowledged) {
  std::uint64_t round_start = 0;
  for (int round = 0; round < 5; ++round) {
    int acknowledged[2];
    ASSERT_EQ(::pipe2(acknowledged, O_CLOEXEC), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto mine = open_sqlite(file());
      if (!mine) ::_exit(1);
      for (std::uint64_t n = round_start + 1;; ++n) {
        const std::string text = std::to_string(n) + std::string(5000, 'r');
        if (!(*mine)->append_event(n, text, 0) || !(*mine)->put_workload("site", text)) ::_exit(2);
        if (::write(acknowledged[1], &n, sizeof n) != sizeof n) ::_exit(3);
      }
    }
    ::close(acknowledged[1]);
    std::uint64_t last = 0;
    for (int n = 0; n < 20 + 13 * round; ++n)
      ASSERT_EQ(::read(acknowledged[0], &last, sizeof last), ssize_t(sizeof last));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    for (std::uint64_t n; ::read(acknowledged[0], &n, sizeof n) == ssize_t(sizeof n);) last = n;
    ::close(acknowledged[0]);

    reopen();
    auto workloads = store_->workloads();
    ASSERT_TRUE(workloads);
    ASSERT_EQ(workloads->size(), 1U);
    const std::uint64_t kept = std::stoull(workloads->front());
    EXPECT_GE(kept, last);
    EXPECT_LE(kept, last + 1) << "one may have been written and not yet acknowledged";
    EXPECT_EQ(workloads->front(), std::to_string(kept) + std::string(5000, 'r'));
    auto events = store_->events(1'000'000);
    ASSERT_TRUE(events);
    ASSERT_FALSE(events->empty());
    EXPECT_GE(events->back().first, last);
    EXPECT_EQ(events->size(), events->back().first) << "none is missing in between";
    round_start = events->back().first;
    store_.reset();
  }
}

// Schemas.

TEST_F(SqliteStoreTest, ANewerSchemaIsRefusedAndLeftAsItIs) {
  reopen();
  EXPECT_TRUE(store_->put_workload("site", "x"));
  store_.reset();
  {
    auto database = Database::open(file());
    ASSERT_TRUE(database);
    ASSERT_TRUE(database->execute("PRAGMA user_version = 99"));
  }
  const Error error = open_error();
  EXPECT_EQ(error.code, Errc::unsupported);
  EXPECT_NE(error.message.find("schema 99"), std::string::npos) << error.message;
  auto database = Database::open(file());
  ASSERT_TRUE(database);
  EXPECT_EQ(database->value("PRAGMA user_version"), "99");
  EXPECT_EQ(database->value("SELECT record FROM workloads"), "x");
}

TEST_F(SqliteStoreTest, TheDatabaseOfAnotherProgramIsRefused) {
  ::close(::open(file().c_str(), O_CREAT | O_WRONLY, 0600));
  {
    auto database = Database::open(file());
    ASSERT_TRUE(database);
    ASSERT_TRUE(database->execute("CREATE TABLE bookmarks (url TEXT)"));
  }
  EXPECT_NE(open_error().message.find("another program"), std::string::npos);
}

TEST_F(SqliteStoreTest, MissingStepsAreTakenAndAFailedOneIsTakenBackWhole) {
  reopen();
  EXPECT_TRUE(store_->put_workload("site", "x"));
  store_.reset();
  auto database = Database::open(file());
  ASSERT_TRUE(database);
  std::vector<const char*> steps(schema_steps().begin(), schema_steps().end());
  const std::string now = std::to_string(steps.size()), next = std::to_string(steps.size() + 1);
  steps.push_back("ALTER TABLE workloads ADD COLUMN extra TEXT;");
  steps.push_back("CREATE TABLE half (a TEXT); CREATE TABLE workloads (name TEXT);");  // the second exists
  const Status failed = migrate(*database, steps);
  ASSERT_FALSE(failed);
  EXPECT_NE(failed.error().message.find("bring the schema to version"), std::string::npos) << failed.error().message;
  EXPECT_EQ(database->value("PRAGMA user_version"), next);
  EXPECT_EQ(database->value("SELECT count(*) FROM sqlite_schema WHERE name = 'half'"), "0");
  steps.pop_back();
  EXPECT_TRUE(migrate(*database, steps));
  EXPECT_EQ(database->value("SELECT record FROM workloads WHERE extra IS NULL"), "x");
}

}  // namespace
}  // namespace yado::state
