// The hosts of a guest's memory change while it runs and writes; it checks every word.
#include <nlohmann/json.hpp>

#include "workload/vm/brake.hpp"
#include "workload/vm/paged_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;
using nlohmann::json;

class ResplitVmProcessTest : public PagedVmTest {
 protected:
  std::vector<pager::ServiceConfig::Server> servers(const std::vector<std::string>& over, std::uint64_t quota = memory_bytes) {
    std::vector<pager::ServiceConfig::Server> all;
    for (const std::string& host : over) all.push_back({.host = host, .unix_path = hosts_[host].socket(), .quota_bytes = quota});
    return all;
  }
  void change(std::uint64_t local, const std::vector<std::string>& over) {
    const auto changed = change_memory_servers(vm_->pager(), local, servers(over));
    ASSERT_OK(changed);
  }
  void change_and_wait(std::uint64_t local, const std::vector<std::string>& over) {
    ASSERT_NO_FATAL_FAILURE(change(local, over));
    const auto drained = wait_until_drained(vm_->pager());
    ASSERT_OK(drained);
  }
  json figures() {
    const auto said = ask_pager(vm_->pager(), R"({"do":"figures"})");
    EXPECT_TRUE(said.has_value());
    return said ? json::parse(*said) : json();
  }
  std::vector<std::string> hosts_in_use() {
    std::vector<std::string> hosts;
    const json now = figures();
    for (const json& one : now.at("servers")) hosts.push_back(one.at("host"));
    return hosts;
  }
  std::uint64_t held_by(const std::string& host) {
    std::uint64_t pages = 0;
    for (const auto& session : hosts_[host].server->sessions()) pages += session.stats.data_pages;
    return pages;
  }
  bool has_session(const std::string& host) { return !hosts_[host].server->sessions().empty(); }
  /// It writes until somebody asks for a verdict.
  void start_writing() {
    ASSERT_OK(vm_->console().send("w"));
    ASSERT_OK(vm_->console().wait_for("GUEST mode", hang));
  }
};

TEST_F(ResplitVmProcessTest, ItsMemoryGoesToAnotherHostWhileItWrites) {
  boot(place("a", memory_bytes / 4, {"h2"}));
  ASSERT_NO_FATAL_FAILURE(start_writing());
  const std::uint64_t sent_before = figures().at("pages_sent");
  ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes / 4, {"h3"}));
  EXPECT_FALSE(has_session("h2"));
  EXPECT_EQ(hosts_in_use(), (std::vector<std::string>{"h3"}));
  EXPECT_GT(held_by("h3"), 0u);
  RecordProperty("pages_sent_by_the_main_host_meanwhile", static_cast<int>(figures().at("pages_sent").get<std::uint64_t>() - sent_before));
  expect_flawless();

  // A checkpoint after it is whole and right.
  write_a_while('w', 5);
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  ASSERT_EQ(image.shares.size(), 2u);
  expect_flawless();
  vm_.reset();
  Place alone = place("alone", memory_bytes, {});
  alone.paging->config.image = image.chain;
  ASSERT_NO_FATAL_FAILURE(restore(image, alone));
  expect_flawless();
}

TEST_F(ResplitVmProcessTest, ToAndFroWithMoreAndLessMemoryHere) {
  boot(place("a", memory_bytes / 4, {"h2"}));
  for (int round = 0; round < 2; ++round) {
    ASSERT_NO_FATAL_FAILURE(start_writing());
    ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes / 8, {"h2", "h3"}));
    ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes / 2, {"h3"}));
    EXPECT_FALSE(has_session("h2"));
    expect_flawless();
    ASSERT_NO_FATAL_FAILURE(start_writing());
    ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes / 4, {"h2"}));
    EXPECT_FALSE(has_session("h3"));
    expect_flawless();
  }
}

TEST_F(ResplitVmProcessTest, AllOfItComesHomeAndMayLeaveAgain) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  ASSERT_NO_FATAL_FAILURE(start_writing());
  ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes, {}));
  EXPECT_FALSE(has_session("h2"));
  EXPECT_FALSE(has_session("h3"));
  write_a_while('w', 10);
  expect_flawless();
  EXPECT_EQ(figures().at("over_limit"), 0u);
  ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes / 4, {"h3"}));
  write_a_while('w', 10);
  expect_flawless();
  EXPECT_GT(held_by("h3"), 0u);
}

/// One guest for all of it.
TEST_F(ResplitVmProcessTest, WhatCannotBeChangesNothing) {
  boot(place("a", memory_bytes / 4, {"h2"}));
  ASSERT_NO_FATAL_FAILURE(start_writing());
  // A server that is not there.
  hosts_["h4"].path = directory_.path() / "nobody.sock";
  auto changed = change_memory_servers(vm_->pager(), memory_bytes / 2, servers({"h3", "h4"}));
  ASSERT_FALSE(changed);
  EXPECT_NE(changed.error().message.find("memory on h4"), std::string::npos) << changed.error().text();
  hosts_.erase("h4");
  EXPECT_EQ(hosts_in_use(), (std::vector<std::string>{"h2"}));
  EXPECT_OK(wait_until_drained(vm_->pager()));

  // During a checkpoint.
  {
    const fs::path part = directory_.path() / "part";
    fs::create_directories(part);
    PagedMemory memory({.control = vm_->pager(), .part = part, .name = "a-img.1", .cut = image::CutId::of("one"), .base_cut = {}, .base = {}, .progress = {}});
    Brake brake(vm_->cgroup(), 0);
    ASSERT_OK(memory.before_pause(brake));
    changed = change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h3"}));
    ASSERT_FALSE(changed);
    EXPECT_EQ(changed.error().code, Errc::conflict);
  }
  // Abandoned: as soon as the pager has heard of it, it may change. And a mind may be changed.
  do changed = change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h3"}));
  while (!changed && changed.error().code == Errc::conflict);
  ASSERT_OK(changed);
  ASSERT_NO_FATAL_FAILURE(change(memory_bytes / 4, {"h2"}));
  ASSERT_NO_FATAL_FAILURE(change(memory_bytes / 4, {"h3"}));
  ASSERT_NO_FATAL_FAILURE(change_and_wait(memory_bytes / 4, {"h2"}));
  EXPECT_FALSE(has_session("h3"));
  expect_flawless();

  // A quota grows, and may shrink to what is held; not to less.
  ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h2"}, memory_bytes + 1_MiB)));
  const auto less = change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h2"}, 1_MiB));
  ASSERT_OK(less);
  ASSERT_EQ(less->size(), 1u);
  EXPECT_NE(less->front().find("h2 keeps its larger quota"), std::string::npos) << less->front();
  EXPECT_EQ(hosts_["h2"].server->sessions().at(0).stats.quota_pages, (memory_bytes + 1_MiB) / 4096);

  // Too little room: who cannot be emptied stays.
  ASSERT_NO_FATAL_FAILURE(start_writing());
  ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h3"}, 1_MiB)));
  const auto drained = wait_until_drained(vm_->pager());
  ASSERT_FALSE(drained);
  EXPECT_EQ(drained.error().code, Errc::no_space);
  EXPECT_NE(drained.error().message.find("h2 keeps pages"), std::string::npos) << drained.error().text();
  EXPECT_EQ(hosts_in_use(), (std::vector<std::string>{"h2", "h3"}));
  expect_flawless();
}

/// Two copies of every page: any one of the three may die while one is emptied.
TEST_F(ResplitVmProcessTest, WhoDiesMeanwhileTheGuestIsRight) {
  for (const std::string victim : {"h2", "h3", "h4"}) {
    SCOPED_TRACE(victim);
    for (const char* name : {"h2", "h3", "h4"})
      if (!hosts_.contains(name)) add_host(name);
    boot(place("a" + victim, memory_bytes / 4, {"h2", "h3"}, 2));
    ASSERT_NO_FATAL_FAILURE(start_writing());
    ASSERT_NO_FATAL_FAILURE(change(memory_bytes / 4, {"h3", "h4"}));
    hosts_.erase(victim);
    (void)wait_until_drained(vm_->pager());  // h4 gone: h2's pages find no second server
    expect_flawless();
    if (victim == "h2") {
      EXPECT_EQ(figures().at("pages_without_redundancy"), 0u);
    }
    vm_.reset();
  }
}

TEST_F(ResplitVmProcessTest, AServerMayBeInUseAndLeavingFromTheStart) {
  boot(place("a", memory_bytes / 4, {"h2"}));
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  vm_.reset();
  Place where = place("a", memory_bytes / 2, {"h2", "h3"});
  fs::remove_all(where.directory);
  fs::create_directories(where.directory);
  where.paging->config.image = {{image.directory / "memory"}};
  where.paging->config.servers[0].load = {image.name + ".h2"};
  where.paging->config.servers[0].leaving = true;
  ASSERT_NO_FATAL_FAILURE(restore(image, where));
  EXPECT_OK(wait_until_drained(vm_->pager()));
  EXPECT_FALSE(has_session("h2"));
  EXPECT_EQ(hosts_in_use(), (std::vector<std::string>{"h3"}));
  expect_flawless();
}

}  // namespace
}  // namespace yado::vm
