#include "image/fingerprint.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "image/temporary_directory.hpp"

namespace yado::image {
namespace {

namespace fs = std::filesystem;

const fs::file_time_type long_ago = fs::file_time_type::clock::now() - std::chrono::hours(1000);

// The same tree at every call, whatever the order in which it is made.
void make_tree(const fs::path& root, bool backwards) {
  std::vector<std::pair<std::string, std::string>> files{
      {"bin/app", "#!"}, {"etc/a/b/c", "deep"}, {"etc/conf", "x=1"}, {"lib/z", ""}};
  if (backwards) std::ranges::reverse(files);
  for (const auto& [path, content] : files) {
    put_file(root / path, content);
    fs::last_write_time(root / path, long_ago);
  }
  fs::create_symlink("app", root / "bin/link");
}

std::string print(const fs::path& root) {
  auto result = fingerprint(root);
  EXPECT_TRUE(result) << result.error().message;
  return result.value_or("(none)");
}

TEST(FingerprintTest, TheSameTreeElsewhereHasTheSame) {
  TemporaryDirectory a, b;
  make_tree(a.path(), false);
  make_tree(b.path(), true);
  EXPECT_EQ(print(a.path()), print(b.path()));
  EXPECT_EQ(print(a.path()), print(a.path().native() + "/"));
}

TEST(FingerprintTest, ARootReachedThroughALinkIsTheSame) {
  TemporaryDirectory a, b;
  make_tree(a.path(), false);
  fs::create_directory_symlink(a.path(), b.path() / "root");
  EXPECT_EQ(print(b.path() / "root"), print(a.path()));
}

TEST(FingerprintTest, EveryChangeOfTheTreeShows) {
  const std::pair<const char*, std::function<void(const fs::path&)>> changes[] = {
      {"time", [](const fs::path& r) { fs::last_write_time(r / "etc/a/b/c", long_ago + std::chrono::nanoseconds(1)); }},
      {"length",
       [](const fs::path& r) {
         put_file(r / "etc/conf", "x=12");
         fs::last_write_time(r / "etc/conf", long_ago);
       }},
      {"mode", [](const fs::path& r) { fs::permissions(r / "bin/app", fs::perms(0755)); }},
      {"name", [](const fs::path& r) { fs::rename(r / "etc/conf", r / "etc/config"); }},
      {"place", [](const fs::path& r) { fs::rename(r / "etc/conf", r / "bin/conf"); }},
      {"new empty directory", [](const fs::path& r) { fs::create_directory(r / "etc/a/d"); }},
      {"removed", [](const fs::path& r) { fs::remove(r / "lib/z"); }},
      {"link's target",
       [](const fs::path& r) {
         fs::remove(r / "bin/link");
         fs::create_symlink("apq", r / "bin/link");
       }},
      {"type",
       [](const fs::path& r) {
         fs::remove(r / "lib/z");
         fs::create_directory(r / "lib/z");
       }},
      {"mode of the root", [](const fs::path& r) { fs::permissions(r, fs::perms(0711)); }},
  };
  for (const auto& [what, change] : changes) {
    TemporaryDirectory directory;
    make_tree(directory.path(), false);
    const std::string before = print(directory.path());
    change(directory.path());
    EXPECT_NE(print(directory.path()), before) << what;
  }
}

TEST(FingerprintTest, ReadingTheTreeDoesNotChangeIt) {
  TemporaryDirectory directory;
  make_tree(directory.path(), false);
  const std::string before = print(directory.path());
  std::ifstream(directory.path() / "bin/app").get();
  put_file(directory.path() / "etc/gone", "x");
  fs::remove(directory.path() / "etc/gone");  // the directory has another time now, and the same entries
  EXPECT_EQ(print(directory.path()), before);
}

TEST(FingerprintTest, ATarIsItsLengthAndTime) {
  TemporaryDirectory directory;
  const fs::path tar = directory.path() / "root.tar";
  put_file(tar, "abc");
  fs::last_write_time(tar, long_ago);
  const std::string before = print(tar);
  fs::last_write_time(tar, long_ago + std::chrono::seconds(1));
  EXPECT_NE(print(tar), before);
  put_file(tar, "abcd");
  fs::last_write_time(tar, long_ago);
  EXPECT_NE(print(tar), before);
}

TEST(FingerprintTest, WhatIsNoRootFileSystemSaysSo) {
  TemporaryDirectory directory;
  EXPECT_EQ(fingerprint(directory.path() / "missing").error().code, Errc::not_found);
  EXPECT_EQ(fingerprint("/dev/null").error().message, "root file system /dev/null: neither a directory nor a tar");
}

WorkloadSpec spec() {
  WorkloadSpec spec;
  spec.name = WorkloadId("site");
  spec.container = {
      .root = "/srv", .command = {"a", "bc"}, .environment = {{"A", "1"}}, .mounts = {{"/s", "/t", true}}};
  spec.service = {.hosts = {"site.test"}, .port = 80};
  return spec;
}

TEST(SpecHashTest, WhatAnImageDependsOnChangesIt) {
  const std::string before = spec_hash(spec(), "f");
  EXPECT_EQ(spec_hash(spec(), "f"), before);
  EXPECT_NE(spec_hash(spec(), "g"), before);
  const std::function<void(WorkloadSpec&)> changes[] = {
      [](auto& s) { s.name = WorkloadId("site2"); },
      [](auto& s) { s.container.root = "/srv2"; },
      [](auto& s) {
        s.container.command = {"ab", "c"};
      },
      [](auto& s) {
        s.container.environment = {{"A1", ""}};
      },
      [](auto& s) { s.container.working_directory = "/x"; },
      [](auto& s) { s.container.uid = 1; },
      [](auto& s) { s.container.gid = 1; },
      [](auto& s) { s.container.mounts[0].read_only = false; },
      [](auto& s) { s.container.mounts.clear(); },
      [](auto& s) { s.container.memory_bytes = 1; },
      [](auto& s) { s.container.cpus = 0.5; },
      [](auto& s) { s.container.pids = 1; },
      [](auto& s) { s.service.port = 81; },
      [](auto& s) { s.service.ready.path = "/x"; },
      [](auto& s) { s.service.ready.status = 204; },
      [](auto& s) { s.service.ready.contains = "x"; },
  };
  for (std::size_t i = 0; i < std::size(changes); ++i) {
    WorkloadSpec changed = spec();
    changes[i](changed);
    EXPECT_NE(spec_hash(changed, "f"), before) << i;
  }
}

TEST(SpecHashTest, WhatMayChangeUnderARunningApplicationDoesNot) {
  WorkloadSpec changed = spec();
  changed.policy.standby = StandbyLevel::frozen;
  changed.policy.placement = {HostId("h1")};
  changed.service.hosts = {"other.test"};
  changed.service.idempotency_header = "key";
  changed.service.ready.start_limit = 1ms;
  EXPECT_EQ(spec_hash(changed, "f"), spec_hash(spec(), "f"));
}

}  // namespace
}  // namespace yado::image
