// A guest whose memory is held with parity, and the rate of a checkpoint: real QEMU, pager and memory servers.
#include "workload/vm/paged_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;

class ParityVmProcessTest : public PagedVmTest {
 protected:
  Place parity_place(const std::string& name, const std::vector<std::string>& over) {
    Place made = place(name, memory_bytes / 4, over);
    made.paging->config.parity = true;
    return made;
  }
  std::vector<pager::ServiceConfig::Server> servers(const std::vector<std::string>& over) {
    return parity_place("names", over).paging->config.servers;
  }
  void lose(const std::string& host) { hosts_.erase(host); }
  void replace_by(const std::string& host, const std::vector<std::string>& over) {
    add_host(host);
    ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes / 4, servers(over)));
    ASSERT_NO_FATAL_FAILURE(wait_until_redundant());
  }
  std::uint64_t parity_pages() const {
    std::uint64_t pages = 0;
    for (const auto& [name, host] : hosts_)
      for (const auto& session : host.server->sessions())
        if (session.name.ends_with(".parity")) pages += session.stats.data_pages;
    return pages;
  }
};

TEST_F(ParityVmProcessTest, AnyHostMayDieAndItIsSavedAndRestored) {
  add_host("h4");
  boot(parity_place("a", {"h2", "h3", "h4"}));
  write_a_while('w', 5);
  EXPECT_GT(parity_pages(), 0u);
  lose("h3");
  write_a_while('w', 5);
  expect_flawless();

  // What is only in the parity is on no host as it is: this host computes it, as it was at the cut.
  ASSERT_GT(figure("pages_without_redundancy").value_or(0), 0u);
  Image lost_one{.name = "a-img.0"}, lost_one_later{.name = "a-img.0b"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(lost_one));
  write_a_while('h', 5);
  ASSERT_NO_FATAL_FAILURE(checkpoint(lost_one_later, &lost_one));
  EXPECT_EQ(lost_one_later.base_cut, lost_one.cut);
  EXPECT_EQ(lost_one_later.shares.size(), 3u) << "of this host and of two others";
  expect_flawless();

  ASSERT_NO_FATAL_FAILURE(replace_by("h5", {"h2", "h4", "h5"}));
  lose("h2");
  write_a_while('w', 5);
  expect_flawless();
  ASSERT_NO_FATAL_FAILURE(replace_by("h2", {"h2", "h4", "h5"}));
  const auto without_h4 = change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h2", "h5"}));
  ASSERT_FALSE(without_h4);
  EXPECT_EQ(without_h4.error().code, Errc::unsupported) << without_h4.error().text();

  Image first{.name = "a-img.1"}, second{.name = "a-img.2"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(first));
  write_a_while('h', 5);
  ASSERT_NO_FATAL_FAILURE(checkpoint(second, &first));
  EXPECT_EQ(second.base_cut, first.cut);
  expect_flawless();
  vm_.reset();
  EXPECT_EQ(parity_pages(), 0u) << "their sessions end, too";

  // Each host loads its share; the parity is computed anew, and then one may be lost again.
  Place same = parity_place("a", {"h2", "h4", "h5"});
  fs::remove_all(same.directory);
  fs::create_directories(same.directory);
  same.paging->config.image = {{first.directory / "memory"}};
  for (auto& server : same.paging->config.servers) server.load = {first.name + "." + server.host};
  ASSERT_NO_FATAL_FAILURE(restore(first, same));
  ASSERT_NO_FATAL_FAILURE(wait_until_redundant());
  EXPECT_GT(parity_pages(), 0u);
  lose("h4");
  expect_flawless();
  vm_.reset();

  // The chains, on one host alone: no parity is needed.
  for (const Image* image : {&second, &lost_one_later}) {
    Place alone = parity_place("alone-" + image->name, {});
    alone.paging->config.local_bytes = memory_bytes;
    alone.paging->config.image = image->chain;
    ASSERT_NO_FATAL_FAILURE(restore(*image, alone));
    expect_flawless();
    vm_.reset();
  }
}

TEST_F(ParityVmProcessTest, ALivingHostLeavesWhileTheGuestWrites) {
  add_host("h4");
  add_host("h5");
  boot(parity_place("a", {"h2", "h3", "h4"}));
  ASSERT_OK(vm_->console().send("w"));
  ASSERT_OK(vm_->console().wait_for("GUEST mode", hang));
  const auto change = [&](const std::vector<std::string>& over) {
    ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes / 4, servers(over)));
    ASSERT_OK(wait_until_drained(vm_->pager()));
  };
  ASSERT_NO_FATAL_FAILURE(change({"h2", "h4", "h5"}));
  EXPECT_TRUE(hosts_["h3"].server->sessions().empty());
  expect_flawless();
  lose("h2");
  write_a_while('w', 3);
  expect_flawless();
  ASSERT_NO_FATAL_FAILURE(replace_by("h2", {"h2", "h4", "h5"}));

  // One dies while it leaves, and one that was to take places.
  for (const char* victim : {"h4", "h3"}) {
    SCOPED_TRACE(victim);
    write_a_while('w', 3);
    ASSERT_OK(change_memory_servers(vm_->pager(), memory_bytes / 4, servers({"h2", "h3", "h5"})));
    lose(victim);
    (void)wait_until_drained(vm_->pager());
    expect_flawless();
    add_host(victim);
    ASSERT_NO_FATAL_FAILURE(change({"h2", "h4", "h5"}));
    ASSERT_NO_FATAL_FAILURE(wait_until_redundant());
  }
  lose("h5");
  expect_flawless();
}

TEST_F(ParityVmProcessTest, TwoHostsAreTooFew) {
  const auto started = Vm::start(spec(), parity_place("a", {"h2", "h3"}), qemu());
  ASSERT_FALSE(started);
  EXPECT_NE(started.error().message.find("wants 3 memory servers, 2 are there"), std::string::npos) << started.error().text();
}

TEST_F(ParityVmProcessTest, ACheckpointKeepsToItsRateOnEveryHost) {
  struct Took {
    double seconds = 0, bytes = 0;  ///< of the host that wrote most
    double rate() const { return bytes / seconds; }
  };
  const auto save = [&](const std::string& name, Image& image) {
    image.name = name;
    const Instant begun = os::now();
    checkpoint(image);
    Took took{.seconds = to_ms(os::now() - begun) / 1000};
    for (const MemoryShare& share : image.shares) took.bytes = std::max(took.bytes, static_cast<double>(share.bytes));
    return took;
  };
  Image whole, limited;
  boot(place("a", memory_bytes / 2, {"h2"}));
  const Took fast = save("a-img.1", whole);
  ASSERT_FALSE(HasFatalFailure());
  vm_.reset();
  Place slower = place("b", memory_bytes / 2, {"h2"});
  slower.paging->config.image = whole.chain;
  slower.paging->config.save_bytes_per_second = static_cast<std::uint64_t>(fast.rate() / 4);
  ASSERT_NO_FATAL_FAILURE(restore(whole, slower));
  const Took slow = save("b-img.1", limited);
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_GT(slow.bytes, 8.0 * (1 << 20)) << "too little to tell";
  // The first and the last piece of 1 MiB are not waited for.
  EXPECT_LT((slow.bytes - 2 * (1 << 20)) / slow.seconds, fast.rate() / 4) << "of " << fast.rate() << " B/s without a limit";
  // Of two limits, that of all checkpoints and that of this one, the smaller counts.
  for (const double share : {8.0, 2.0}) {
    Image once;
    once.bytes_per_second = static_cast<std::uint64_t>(fast.rate() / share);
    const Took took = save(fmt::format("b-img.{}", share), once);
    ASSERT_FALSE(HasFatalFailure());
    EXPECT_LT((took.bytes - 2 * (1 << 20)) / took.seconds, fast.rate() / std::max(share, 4.0)) << "of " << fast.rate() << " B/s without a limit";
  }
  expect_flawless();
}

}  // namespace
}  // namespace yado::vm
