// A real guest on several hosts: PostgreSQL and Redis with more data than its main host holds, under load from outside, checkpointed while it runs. Needs the guest `database`
// (tools/make-guest) and PostgreSQL's own programs; with --long only, because it boots a whole distribution under TCG.
#include <algorithm>
#include <future>
#include <random>
#include <sstream>

#include "net/rtnl.hpp"
#include "net/testing.hpp"
#include "os/process.hpp"
#include "workload/vm/paged_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;

constexpr std::uint64_t database_memory = 384_MiB;
constexpr const char* guest_address = "10.77.0.2";
constexpr unsigned redis_keys = 16 << 10, redis_value = 4 << 10, redis_batch = 64;
constexpr const char* accounts = "--scale=4";  // some 64 MB
constexpr const char* load_seconds = "--time=10";

/// Where Debian has PostgreSQL's programs, of the newest version; empty: nowhere.
fs::path postgres_programs() {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", ignored))
    if (fs::exists(version.path() / "bin/pgbench")) found.push_back(version.path() / "bin");
  return found.empty() ? fs::path() : *std::ranges::max_element(found);
}

class DatabaseVmProcessTest : public PagedVmTest {
 protected:
  void SetUp() override {
    if (std::getenv("YADO_LONG") == nullptr) GTEST_SKIP() << "takes minutes: ./run test --long, or YADO_LONG=1";
    PagedVmTest::SetUp();
    if (IsSkipped()) return;
    if (guest("database").empty()) GTEST_SKIP() << "needs the guest `database`: tools/make-guest database $YADO_GUESTS/database";
    if (postgres_programs().empty()) GTEST_SKIP() << "needs pgbench below /usr/lib/postgresql: ./run deps installs postgresql-15";
    auto made = os::Netns::create();
    ASSERT_OK(made);
    network_.emplace(std::move(*made));
    auto links = net::Rtnl::open(*network_);
    ASSERT_OK(links);
    ASSERT_OK(links->add_bridge("br0", net::Mac{{2, 0, 0, 0, 0, 1}}));
    ASSERT_OK(links->add_address("br0", {net::Ipv4::of(10, 77, 0, 1), 24}));
    ASSERT_OK(links->set_up("br0"));
  }
  VmSpec spec() const override {
    const fs::path files = guest("database");
    VmSpec made;
    made.name = "database";
    made.kernel = files / "kernel";
    made.initramfs = files / "initramfs";
    // no_timer_check: on busy cores a TCG guest's kernel finds its emulated timer too slow, and panics.
    made.kernel_command_line = fmt::format("console=ttyS0 quiet no_timer_check yado.address={}/24", guest_address);
    made.memory_bytes = database_memory;
    made.disks = {files / "disk.qcow2"};
    made.mac = net::Mac{{2, 0, 0, 0, 0, 2}};
    return made;
  }
  Place on(const std::string& name, std::uint64_t local, const std::vector<std::string>& over) {
    Place where = place(name, local, over);
    where.network_namespace = network_->fd().get();
    where.bridge = "br0";
    for (auto& server : where.paging->config.servers) server.quota_bytes = database_memory;
    return where;
  }

  // ---- load from outside ----

  Result<std::string> outside(std::vector<std::string> arguments) const {
    YADO_ASSIGN(os::Pipe said, os::make_pipe(), "outside");
    os::Spawn spawn{.arguments = std::move(arguments), .environment = {"LC_ALL=C", "PATH=/usr/bin:/bin", "PGCONNECT_TIMEOUT=60"}};
    spawn.standard_output = spawn.standard_error = said.write.get();
    YADO_ASSIGN(os::Process process, os::run_in(*network_, [&] { return os::spawn(spawn); }), "outside");
    said.write.reset();
    std::string text;
    char chunk[4096];
    for (ssize_t n; (n = ::read(said.read.get(), chunk, sizeof chunk)) > 0 || (n < 0 && errno == EINTR);)
      if (n > 0) text.append(chunk, static_cast<std::size_t>(n));
    YADO_ASSIGN(const auto ended, process.wait(hang), "outside");
    if (!ended || !ended->success()) return fail(Errc::application, "{}: {}", spawn.arguments.front(), text);
    return text;
  }
  Result<std::string> pgbench(std::vector<std::string> options) const {
    options.insert(options.begin(), {postgres_programs() / "pgbench", "-h", guest_address, "-U", "postgres"});
    options.emplace_back("postgres");
    return outside(std::move(options));
  }
  /// How many transfers were acknowledged.
  Result<std::uint64_t> transfer_a_while() const {
    YADO_ASSIGN(const std::string said, pgbench({"--no-vacuum", "--builtin=tpcb-like", "--client=4", "--jobs=1", load_seconds}), "load");
    constexpr std::string_view words = "number of transactions actually processed: ";
    const std::size_t at = said.find(words);
    if (at == std::string::npos) return fail(Errc::corrupt, "pgbench says {}", said);
    return std::strtoull(said.c_str() + at + words.size(), nullptr, 10);
  }
  /// All sums are of the same transfers; returns how many these are.
  Result<std::uint64_t> count_transfers() const {
    YADO_ASSIGN(const std::string said, outside({postgres_programs() / "psql", "-h", guest_address, "-U", "postgres", "-d", "postgres", "-At", "-F", " ", "-c",
                                                 "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM "
                                                 "pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)"}), "count");
    std::int64_t of_accounts = 0, of_tellers = 1, of_branches = 2, of_history = 3, transfers = -1;
    std::istringstream(said) >> of_accounts >> of_tellers >> of_branches >> of_history >> transfers;
    if (of_accounts != of_tellers || of_tellers != of_branches || of_branches != of_history) return fail(Errc::corrupt, "another sum: {}", said);
    return static_cast<std::uint64_t>(transfers);
  }

  static std::string value_of(unsigned key) {
    std::mt19937_64 random(key);
    std::string value(redis_value, '\0');
    for (char& byte : value) byte = static_cast<char>(random());
    return value;
  }
  /// Sends commands, and reads as many bytes as the answers must have.
  static Result<std::string> ask_redis(const os::Fd& client, const std::string& commands, std::size_t bytes) {
    YADO_TRY(os::write_all(client, commands), "redis");
    std::string answers(bytes, '\0');
    for (std::size_t have = 0; have < bytes;) {
      YADO_ASSIGN(const bool there, os::readable_within(client.get(), hang), "redis");
      const ssize_t n = there ? ::read(client.get(), answers.data() + have, bytes - have) : 0;
      if (n <= 0) return fail(Errc::unavailable, "redis has answered {} of {} bytes", have, bytes);
      have += static_cast<std::size_t>(n);
    }
    return answers;
  }
  Result<os::Fd> redis() const {
    YADO_ASSIGN(os::Fd client, net::testing::connect_in(*network_, guest_address, 6379, static_cast<int>(hang / 1ms)), "redis");
    if (::fcntl(client.get(), F_SETFL, 0) < 0) return fail_errno("redis");  // whole batches go out
    return client;
  }
  Status fill_redis() const {
    YADO_ASSIGN(const os::Fd client, redis(), "redis");
    for (unsigned key = 0; key < redis_keys; key += redis_batch) {
      std::string commands;
      for (unsigned i = key; i < key + redis_batch; ++i) commands += fmt::format("*3\r\n$3\r\nSET\r\n$5\r\n{:05}\r\n${}\r\n{}\r\n", i, redis_value, value_of(i));
      YADO_TRY(ask_redis(client, commands, redis_batch * 5), "redis");  // "+OK\r\n"
    }
    return {};
  }
  Status check_redis() const {
    YADO_ASSIGN(const os::Fd client, redis(), "redis");
    for (unsigned key = 0; key < redis_keys; key += redis_batch) {
      std::string commands, wanted;
      for (unsigned i = key; i < key + redis_batch; ++i) {
        commands += fmt::format("*2\r\n$3\r\nGET\r\n$5\r\n{:05}\r\n", i);
        wanted += fmt::format("${}\r\n{}\r\n", redis_value, value_of(i));
      }
      YADO_ASSIGN(const std::string answers, ask_redis(client, commands, wanted.size()), "redis");
      if (answers != wanted) return fail(Errc::corrupt, "a value of the keys from {:05} on is wrong", key);
    }
    return {};
  }

  // ---- lives ----

  void boot_and_fill(const Place& where) {
    auto started = Vm::start(spec(), where, qemu());
    ASSERT_OK(started);
    vm_.emplace(std::move(*started));
    ASSERT_OK(vm_->console().wait_for("database system is ready to accept connections", hang));
    ASSERT_OK(pgbench({"--initialize", "--init-steps=dtGvp", accounts}));
    ASSERT_OK(fill_redis());
  }
  /// In the midst of transfers. Those that were acknowledged before and after it are the bounds of what it has.
  void checkpoint_under_load(Image& image, const Image* base) {
    auto load = std::async(std::launch::async, [&] { return transfer_a_while(); });
    const std::uint64_t begun = transfers_;
    ASSERT_OK(wait_for_more_than(begun));
    at_least_ = begun + 1;
    ASSERT_NO_FATAL_FAILURE(checkpoint(image, base));
    const auto done = load.get();
    ASSERT_OK(done);
    transfers_ = begun + *done;
    const auto now = count_transfers();
    ASSERT_OK(now);
    EXPECT_EQ(*now, transfers_);
  }
  void go_on_from(const Image& image, Place where) {
    vm_.reset();
    where.paging->config.image = image.chain;
    ASSERT_NO_FATAL_FAILURE(restore(image, where));
    if (image.saved.disks_frozen) {
      auto agent = vm_->agent(hang);
      ASSERT_OK(agent);
      ASSERT_OK(agent->thaw_disks(hang));
    }
    const auto now = count_transfers();
    ASSERT_OK(now);
    EXPECT_GE(*now, at_least_);
    EXPECT_LE(*now, transfers_);
    transfers_ = *now;
    EXPECT_OK(check_redis());
  }
  /// One that was seen from outside.
  Status wait_for_more_than(std::uint64_t transfers) const {
    for (;;) {
      YADO_ASSIGN(const std::uint64_t now, count_transfers(), "load");
      if (now > transfers) return {};
    }
  }

  std::optional<os::Netns> network_;
  std::uint64_t transfers_ = 0, at_least_ = 0;
};

TEST_F(DatabaseVmProcessTest, PostgresAndRedisGoOnFromCheckpointsThatWereTakenUnderLoad) {
  ASSERT_NO_FATAL_FAILURE(boot_and_fill(on("a", database_memory / 4, {"h2", "h3"})));
  ASSERT_GT(figure("paged_out").value_or(0) * 4096, database_memory / 4) << "it has no more data than its main host holds";
  Image first{.name = "a-img.1"}, second{.name = "a-img.2"}, third{.name = "b-img.3"};
  ASSERT_NO_FATAL_FAILURE(checkpoint_under_load(first, nullptr));
  ASSERT_NO_FATAL_FAILURE(checkpoint_under_load(second, &first));
  EXPECT_EQ(second.base_cut, first.cut);
  // The host is lost with everything on it; over other hosts, then alone, and from what was saved there as well.
  ASSERT_NO_FATAL_FAILURE(go_on_from(second, on("b", database_memory / 2, {"h3"})));
  ASSERT_NO_FATAL_FAILURE(checkpoint_under_load(third, &second));
  EXPECT_EQ(third.base_cut, second.cut);
  EXPECT_TRUE(third.saved.disks_are_delta);
  ASSERT_NO_FATAL_FAILURE(go_on_from(third, on("c", database_memory, {})));
  const auto end = vm_->stop(hang);
  ASSERT_OK(end);
  EXPECT_EQ(end->reason, "the guest powered off");
}

}  // namespace
}  // namespace yado::vm
