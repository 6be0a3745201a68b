// Guests whose memory is split: real QEMU, real pager, real memory servers; a guest that checks every word.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "os/clock.hpp"
#include "pager/memory_server.hpp"
#include "workload/vm/testing.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using namespace testing;

#define ASSERT_OK(result) ASSERT_TRUE((result).has_value()) << (result).error().text()

constexpr std::uint64_t memory_bytes = 128_MiB;
constexpr unsigned pattern_mib = 48;

/// Tests whose name has "Process" are left out under tsan (./run): they fork.
class PagedVmProcessTest : public ::testing::Test {
 protected:
  struct Host {
    std::string name;
    std::unique_ptr<pager::MemoryServer> server;
    std::string socket() const { return path.native(); }
    fs::path path;
  };

  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    for (const char* name : {"h2", "h3"}) add_host(name);
  }
  void TearDown() override {
    vm_.reset();
    hosts_.clear();
    if (IsSkipped()) return;
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
  }

  void add_host(const std::string& name) {
    Host& host = hosts_[name];
    host.name = name;
    host.path = directory_.path() / (name + ".sock");
    host.server = std::make_unique<pager::MemoryServer>(pager::MemoryServer::Options{.capacity_pages = 4 * memory_bytes / 4096});
    ASSERT_OK(host.server->listen_unix(host.socket(), 0600));
  }

  Place place(const std::string& name, std::uint64_t local, const std::vector<std::string>& over, unsigned copies = 1) {
    Place made{.directory = directory_.path() / name, .cgroup = fmt::format("yado-test/{}-{}", directory_.path().filename().native(), name)};
    fs::create_directories(made.directory);
    Paging paging{.program = {YADO_PAGER_PROGRAM}};
    paging.config.local_bytes = local;
    paging.config.copies = copies;
    paging.config.session = name;
    paging.config.epoch = ++epoch_;
    for (const std::string& host : over)
      paging.config.servers.push_back({.host = host, .unix_path = hosts_[host].socket(), .quota_bytes = memory_bytes});
    made.paging = paging;
    return made;
  }
  VmSpec spec() const { return verifier(memory_bytes, pattern_mib); }

  void boot(const Place& where) {
    auto started = Vm::start(spec(), where, qemu());
    ASSERT_OK(started);
    vm_.emplace(std::move(*started));
    const auto filled = vm_->console().wait_for("GUEST filled", hang);
    ASSERT_OK(filled);
  }
  void expect_flawless() {
    const auto verdict = verify(*vm_);
    ASSERT_OK(verdict);
    EXPECT_TRUE(flawless(*verdict)) << ::testing::PrintToString(*verdict);
  }
  /// Lets it write for a while, without asking what the time is.
  void write_a_while(char mode, int looks = 20) {
    ASSERT_OK(vm_->console().send(std::string(1, mode)));
    ASSERT_OK(vm_->console().wait_for("GUEST mode", hang));
    for (int i = 0; i < looks; ++i) {
      ASSERT_OK(vm_->console().send("s"));
      ASSERT_OK(vm_->console().wait_for("GUEST is", hang));
    }
  }

  image::TemporaryDirectory directory_;
  std::map<std::string, Host> hosts_;
  std::optional<Vm> vm_;
  std::uint64_t epoch_ = 0;
};

TEST_F(PagedVmProcessTest, AGuestBootsAndRunsWithAQuarterOfItsMemoryHere) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  expect_flawless();
  write_a_while('w');
  expect_flawless();
  const auto use = vm_->stats();
  ASSERT_OK(use);
  EXPECT_LE(use->guest_bytes, memory_bytes / 4);
  std::uint64_t held = 0;
  for (const auto& [name, host] : hosts_)
    for (const auto& session : host.server->sessions()) held += session.stats.data_pages;
  EXPECT_GT(held, 0u);
  const auto figures = ask_pager(vm_->pager(), R"({"do":"figures"})");
  ASSERT_OK(figures);
  std::fprintf(stderr, "%s\n", figures->c_str());
}

TEST_F(PagedVmProcessTest, WithoutAMemoryServerItDoesNotStart) {
  Place where = place("a", memory_bytes / 2, {"h2"});
  hosts_.erase("h2");
  const auto started = Vm::start(spec(), where, qemu());
  ASSERT_FALSE(started);
  EXPECT_NE(started.error().message.find("memory on h2"), std::string::npos) << started.error().text();
}

TEST_F(PagedVmProcessTest, ADeadPagerEndsTheGuest) {
  boot(place("a", memory_bytes / 4, {"h2"}));
  hosts_.erase("h2");  // with the only copy of its pages
  ASSERT_OK(vm_->console().send("v"));
  const auto gone = vm_->process().ended_within(hang);
  ASSERT_OK(gone);
  EXPECT_TRUE(*gone);
  const auto end = vm_->reap();
  ASSERT_OK(end);
  ASSERT_TRUE(*end);
  EXPECT_NE((*end)->reason.find("pager"), std::string::npos) << (*end)->reason;
}

}  // namespace
}  // namespace yado::vm
