#include "pager/server_set.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <condition_variable>

#include "image/temporary_directory.hpp"
#include "pager/memory_server.hpp"
#include "pager/paged_testing.hpp"
#include "pager/peers_testing.hpp"
#include "pager/remote_testing.hpp"

namespace yado::pager {
namespace {
namespace asio = boost::asio;

/// Lets everything through, or nothing.
class Gate {
 public:
  void close() { set(false); }
  void open() { set(true); }
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_; });
  }

 private:
  void set(bool open) {
    {
      const std::lock_guard lock(mutex_);
      open_ = open;
    }
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
};

/// Memory servers behind gates, and a memory on them.
class ServerSetTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t pages = 4096;
  struct Host {
    std::unique_ptr<MemoryServer> server;
    std::unique_ptr<Gate> gate = std::make_unique<Gate>();
    std::unique_ptr<Proxy> proxy;
  };

  ~ServerSetTest() override {
    stop();
    network_.stop();
  }

  void start(std::initializer_list<const char*> names, unsigned copies) {
    std::vector<ServerSet::Member> members;
    std::vector<PageServer*> servers;
    for (const char* name : names) {
      Host& host = hosts_[name];
      host.server = std::make_unique<MemoryServer>(MemoryServer::Options{.capacity_pages = pages});
      ASSERT_TRUE(host.server->listen_unix(path(name) + ".own", 0600));
      host.proxy = std::make_unique<Proxy>(path(name), path(name) + ".own", [gate = host.gate.get()](std::span<std::byte>) {
        gate->pass();
        return true;
      });
      auto member = connect({.host = name, .unix_path = path(name), .quota_bytes = pages * page_bytes});
      ASSERT_TRUE(member) << member.error().text();
      servers.push_back(member->link.get());
      members.push_back(std::move(*member));
    }
    memory_ = std::make_unique<Copies>(Copies::Options{.pages = pages, .copies = copies, .seed = seed_of_sums}, servers);
    set_ = std::make_unique<ServerSet>(network_.io.get_executor(), *memory_, std::move(members), [this](const auto& server) { return connect(server); });
  }
  void stop() {
    for (auto& [name, host] : hosts_) host.gate->open();
    network_.run([&] {
      for (const auto& link : std::exchange(links_, {})) link->close();
    });
    set_.reset();
    hosts_.clear();
  }
  std::string path(const std::string& name) const { return directory_.path() / name; }

  Status store(const Contents& contents) {
    std::promise<Status> done;
    asio::post(network_.io, [&] { memory_->store(evicted(contents), [&](const Status& status) { done.set_value(status); }); });
    return done.get_future().get();
  }
  Result<Contents> fetch(const std::vector<PageNumber>& wanted) {
    std::promise<Result<Contents>> done;
    Contents out;
    asio::post(network_.io, [&] {
      memory_->fetch(wanted, [&](const Result<Piece>& piece) {
        if (!piece) return done.set_value(std::unexpected(piece.error()));
        out.merge(contents_of_piece(*piece));
        if (out.size() == wanted.size()) done.set_value(out);
      });
    });
    return done.get_future().get();
  }
  std::vector<std::string> living() {
    return network_.run([&] {
      std::vector<std::string> names;
      for (const auto& member : set_->members())
        if (member.link->alive()) names.push_back(member.told.host);
      return names;
    });
  }
  void wait_for_redundancy() {
    while (network_.run([&] { return memory_->pages_without_redundancy() > 0; })) std::this_thread::yield();
  }
  std::uint64_t held(const std::string& host) const {
    const auto sessions = hosts_.at(host).server->sessions();
    return sessions.empty() ? 0 : sessions.front().stats.data_pages;
  }

  BlockPool blocks_{channel_block_bytes};  // outlives the network
  testing::Network network_;
  image::TemporaryDirectory directory_;
  std::map<std::string, Host> hosts_;

 private:
  Result<ServerSet::Member> connect(const ServiceConfig::Server& server) {
    const auto life = static_cast<std::uint64_t>(++lives_);
    const LinkOptions options{.hello = {.epoch = 1, .generation = life << 32, .pages = pages, .quota_pages = server.quota_bytes / page_bytes, .session = "vm"}};
    YADO_ASSIGN(auto link, ServerLink::make(network_.io.get_executor(), blocks_, {.unix_path = server.unix_path}, options), "connect");
    const auto opened = asio::co_spawn(network_.io, ServerLink::open(link), asio::use_future).get();
    if (!opened) return std::unexpected(opened.error());
    network_.run([&] { links_.push_back(link); });
    return ServerSet::Member{.link = link, .told = server};
  }

  std::atomic<int> lives_ = 0;
  std::vector<std::shared_ptr<ServerLink>> links_;

 protected:
  std::unique_ptr<Copies> memory_;
  std::unique_ptr<ServerSet> set_;
};

TEST_F(ServerSetTest, ASilentServerIsDoneWithoutAndTakenUpAgain) {
  start({"h2", "h3"}, 2);
  const Contents all{{1, 1}, {2, 2}, {600, 3}};
  ASSERT_TRUE(store(all));
  hosts_.at("h3").gate->close();
  EXPECT_EQ(fetch({1, 2, 600}).value(), all) << "one of the two regions was asked of it";
  ASSERT_TRUE(store({{1, 11}, {2, 2}, {600, 3}}));
  EXPECT_EQ(living(), (std::vector<std::string>{"h2"}));
  hosts_.at("h3").gate->open();
  wait_for_redundancy();
  EXPECT_EQ(living(), (std::vector<std::string>{"h2", "h3"}));
  EXPECT_EQ(held("h3"), 3u);
  hosts_.at("h2").gate->close();
  EXPECT_EQ(fetch({1, 2, 600}).value(), (Contents{{1, 11}, {2, 2}, {600, 3}})) << "what came back has the newest";
}

TEST_F(ServerSetTest, WhenNobodyAnswersOrNobodyElseHasItEverybodyIsWaitedFor) {
  for (const unsigned copies : {2U, 1U}) {
    start({"h2", "h3"}, copies);
    const Contents all{{1, 1}, {600, 3}};
    ASSERT_TRUE(store(all));
    if (copies == 2) hosts_.at("h2").gate->close();
    hosts_.at("h3").gate->close();
    auto fetched = std::async(std::launch::async, [&] { return fetch({1, 600}); });
    EXPECT_EQ(fetched.wait_for(3s), std::future_status::timeout) << "it is long suspicious by then";
    for (auto& [name, host] : hosts_) host.gate->open();
    EXPECT_EQ(fetched.get().value(), all);
    EXPECT_EQ(living(), (std::vector<std::string>{"h2", "h3"}));
    stop();
  }
}

TEST_F(ServerSetTest, OneThatWasStartedAnewIsTakenUpAgain) {
  start({"h2", "h3"}, 2);
  const Contents all{{1, 1}, {600, 3}};
  ASSERT_TRUE(store(all));
  Host& host = hosts_.at("h3");
  std::filesystem::rename(path("h3") + ".own", path("h3") + ".old");
  auto anew = std::make_unique<MemoryServer>(MemoryServer::Options{.capacity_pages = pages});
  ASSERT_TRUE(anew->listen_unix(path("h3") + ".own", 0600));
  host.server = std::move(anew);
  while (held("h3") < 2) std::this_thread::yield();
  wait_for_redundancy();
  EXPECT_EQ(fetch({1, 600}).value(), all);
}

TEST_F(ServerSetTest, OfADeathIsToldBehindTheAnswersOfWhatWasAskedOfTheDead) {
  for (const bool stores : {false, true}) {
    start({"h2", "h3"}, 1);
    ASSERT_TRUE(store({{1, 1}, {600, 3}}));
    const std::size_t holder = network_.run([&] { return *memory_->owner(600); });
    std::promise<Status> looked, told_later, stored;
    set_->on_death([&] { looked.set_value(memory_->none_lost(PageBits(pages))); });
    network_.run([&] {
      if (stores) memory_->store(evicted({{600, 4}}), [&](const Status& status) { stored.set_value(status); });
      set_->members()[holder].link->give_up({Errc::unavailable, "it was switched off"});
    });
    const Status whole = looked.get_future().get();
    EXPECT_EQ(whole.has_value(), stores) << "its newest content is on its way to the other one";
    if (!whole) {
      EXPECT_EQ(whole.error().message, "page 600 is lost: no server has it any more");
    }
    if (stores) {
      ASSERT_TRUE(stored.get_future().get());
      EXPECT_EQ(fetch({600}).value(), (Contents{{600, 4}}));
    }
    set_->on_death([&] { told_later.set_value({}); });
    told_later.get_future().get();
    stop();
  }
}

TEST_F(ServerSetTest, WhoeverIsNotWantedAnyMoreIsNotTakenUp) {
  start({"h2", "h3"}, 2);
  ASSERT_TRUE(store({{1, 1}, {600, 3}}));
  hosts_.at("h3").gate->close();
  ASSERT_TRUE(fetch({1, 600}));
  std::vector<ServiceConfig::Server> wanted{network_.run([&] { return set_->members()[0].told; })};
  ASSERT_TRUE(set_->change(wanted, [] {}));
  hosts_.at("h3").gate->open();
  std::this_thread::sleep_for(3s);  // longer than until it would have been taken up
  EXPECT_EQ(living(), (std::vector<std::string>{"h2"}));
}

TEST_F(ServerSetTest, ItIsHeldUnchangedWhenNobodyIsBeingEmptiedAnyMore) {
  start({"h2", "h3"}, 1);
  const std::vector<ServiceConfig::Server> wanted{network_.run([&] { return set_->members()[1].told; })};
  ASSERT_TRUE(set_->change(wanted, [&] { hosts_.at("h2").gate->close(); }));
  auto holding = std::async(std::launch::async, [&] { return set_->hold_unchanged(); });
  EXPECT_EQ(holding.wait_for(200ms), std::future_status::timeout) << "h2 has not answered END";
  hosts_.at("h2").gate->open();
  const auto unchanged = holding.get();
  ASSERT_TRUE(unchanged) << unchanged.error().text();
  EXPECT_EQ(living(), (std::vector<std::string>{"h3"}));
  EXPECT_EQ(set_->hold_unchanged().error().code, Errc::conflict) << "one at a time";
  EXPECT_EQ(set_->change(wanted, [] {}).error().code, Errc::conflict);
}

}  // namespace
}  // namespace yado::pager
