// Sessions that more than one main host wants: real memory servers and links.
#include "pager/heritage.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <future>
#include <latch>

#include "image/temporary_directory.hpp"
#include "pager/memory_server.hpp"
#include "pager/paged_testing.hpp"
#include "pager/peers_testing.hpp"

namespace yado::pager {
namespace {

using testing::Network;

class HeritageTest : public ::testing::Test {
 protected:
  static constexpr std::size_t servers = 3;
  using Links = std::vector<std::shared_ptr<ServerLink>>;

  HeritageTest() {
    for (std::size_t i = 0; i < servers; ++i) start_server(i);
  }
  ~HeritageTest() override { close_all(); }
  void close_all() {
    for (const auto& link : std::exchange(opened_, {})) network_.run([&] { return link->close(), true; });
  }
  void start_server(std::size_t number) {
    server_[number].reset();
    server_[number] = std::make_unique<MemoryServer>(MemoryServer::Options{.capacity_pages = 1024});
    ASSERT_TRUE(server_[number]->listen_unix(path(number), 0600));
  }
  std::string path(std::size_t number) const { return directory_.path() / fmt::format("server-{}", number); }

  std::shared_ptr<ServerLink> open(std::size_t number, Hello hello) {
    hello.pages = 1000, hello.quota_pages = 100, hello.session = "vm";
    auto link = ServerLink::make(executor(), blocks_, {.unix_path = path(number)}, {.hello = hello});
    EXPECT_TRUE(link) << link.error().text();
    const auto welcome = boost::asio::co_spawn(network_.io, ServerLink::open(*link), boost::asio::use_future).get();
    EXPECT_TRUE(welcome) << welcome.error().text();
    opened_.push_back(*link);
    return *link;
  }
  /// Three pages on each, the first one with this number.
  Links own_all(std::uint64_t epoch, std::uint64_t number = 1) {
    Links links;
    for (std::size_t i = 0; i < servers; ++i) {
      links.push_back(open(i, {.epoch = epoch, .generation = std::uint64_t{life_now()} << 32, .role = Role::owner}));
      EXPECT_TRUE(put(*links.back(), {{0, number}, {1, 7}, {2, 0}}));
    }
    return links;
  }
  Links read_all(const Links& of, std::uint64_t from, std::uint64_t epoch) {
    Links links;
    for (std::size_t i = 0; i < servers; ++i)
      links.push_back(open(i, {.epoch = epoch, .generation = of[i]->instance(), .role = Role::reader, .from = from}));
    return links;
  }
  boost::asio::any_io_executor executor() { return network_.io.get_executor(); }

  template <class T, class Ask>
  Result<T> answer_of(Ask ask) {
    std::promise<Result<T>> answer;
    boost::asio::post(network_.io, [&] { ask([&](Result<T> got) { answer.set_value(std::move(got)); }); });
    return answer.get_future().get();
  }
  Status put(ServerLink& link, const Contents& contents) {
    PutBatch batch;
    auto pages = std::make_shared<std::vector<Page>>();
    pages->reserve(contents.size());
    for (const auto& [page, number] : contents) {
      batch.pages.push_back(page);
      pages->push_back(page_with(number));
      batch.contents.push_back(number == 0 ? nullptr : pages->back().data());
    }
    batch.hold = pages;
    return answer_of<void>([&](auto done) { link.put(batch, done); });
  }
  Contents get(ServerLink& link) {
    const auto got = answer_of<std::pair<Batch, Frame>>([&](auto done) { link.get({{0, 3}}, done); });
    EXPECT_TRUE(got) << got.error().text();
    return got ? contents_of(got->first.runs, got->first.data) : Contents{};
  }
  static std::size_t inherited(const std::vector<Result<SessionStats>>& answers) {
    return static_cast<std::size_t>(std::ranges::count_if(answers, [](const auto& answer) { return answer.has_value(); }));
  }

  image::TemporaryDirectory directory_;
  BlockPool blocks_{channel_block_bytes};
  std::unique_ptr<MemoryServer> server_[servers];
  Network network_;
  Links opened_;
};

TEST_F(HeritageTest, WhoReadInheritsAndWhoLeftIsFenced) {
  const Links before = own_all(1);
  const Links next = read_all(before, 1, 2);
  EXPECT_EQ(get(*next[0]), (Contents{{0, 1}, {1, 7}, {2, 0}}));
  EXPECT_EQ(put(*next[0], {{0, 9}}).error().code, Errc::permission);
  EXPECT_EQ(get(*before[0]), (Contents{{0, 1}, {1, 7}, {2, 0}})) << "nobody is fenced by a reader";
  EXPECT_EQ(inherited(inherit(executor(), next, 2)), servers);
  EXPECT_TRUE(put(*next[0], {{0, 9}}));
  EXPECT_EQ(put(*before[0], {{0, 5}}).error().code, Errc::stale_epoch);
  EXPECT_EQ(get(*next[0]).at(0), 9u);
  for (const auto& answer : inherit(executor(), before, 3)) EXPECT_EQ(answer.error().code, Errc::stale_epoch) << "its guest may have run";
}

TEST_F(HeritageTest, WhatThisProcessBeganAMomentAgoIsInheritedLikeTheRest) {
  const Links links = own_all(2);  // as the parity of a host that had none before
  for (int within_a_moment = 0; within_a_moment < 3; ++within_a_moment) EXPECT_EQ(inherited(inherit(executor(), links, 2)), servers);
  EXPECT_TRUE(put(*links[0], {{0, 9}}));
}

TEST_F(HeritageTest, WhoLeftTakesItBackAndWhoReadComesTooLate) {
  const Links before = own_all(1);
  const Links next = read_all(before, 1, 2);
  EXPECT_EQ(inherited(inherit(executor(), before, 3)), servers);
  EXPECT_TRUE(put(*before[1], {{0, 3}}));
  const auto read = answer_of<std::pair<Batch, Frame>>([&](auto done) { next[1]->get({{0, 1}}, done); });
  EXPECT_EQ(read.error().code, Errc::stale_epoch) << "a mixture of then and now";
  for (const auto& answer : inherit(executor(), next, 2)) EXPECT_EQ(answer.error().code, Errc::stale_epoch);
  for (const auto& link : next) EXPECT_FALSE(network_.run([&] { return link->alive(); }));
  const Links third = read_all(before, 3, 4);
  EXPECT_EQ(inherited(inherit(executor(), third, 4)), servers) << "later it can be moved";
}

/// Whatever the order in which servers hear of them.
TEST_F(HeritageTest, OfTwoWhoInheritAtTheSameTimeAtMostOneGetsAll) {
  for (std::uint64_t round = 0; round < 60; ++round) {
    const std::uint64_t epoch = 10 * (round + 1);
    const Links before = own_all(epoch, round + 1);
    const Links next = read_all(before, epoch, epoch + 1);
    std::latch both(2);
    const auto want = [&](const Links& links, std::uint64_t as) {
      both.arrive_and_wait();
      return inherited(inherit(executor(), links, as));
    };
    auto back = std::async(std::launch::async, [&] { return want(before, epoch + 2); });
    const std::size_t forth = want(next, epoch + 1), taken_back = back.get();
    EXPECT_EQ(forth + taken_back, servers) << "each session is one's or the other's";
    close_all();
  }
}

TEST_F(HeritageTest, WhatAReaderDropsGoesWhenItInherits) {
  const Links before = own_all(1);
  const Links next = read_all(before, 1, 2);
  std::promise<Status> dropped;
  network_.run([&] { return next[0]->drop({{1, 1}}, [&](const Status& done) { dropped.set_value(done); }), true; });
  EXPECT_EQ(get(*before[0]), (Contents{{0, 1}, {1, 7}, {2, 0}}));
  const auto stats = inherit(executor(), next, 2);
  ASSERT_EQ(inherited(stats), servers);
  EXPECT_EQ(stats[0]->data_pages, 2u) << "what was left is counted before";
  EXPECT_TRUE(dropped.get_future().get());
  EXPECT_EQ(get(*next[0]), (Contents{{0, 1}, {2, 0}}));
}

TEST_F(HeritageTest, WhatWasChangedSinceIsNotAsItWasLeft) {
  const Links before = own_all(1);
  const auto stats = stats_of(executor(), before);
  ASSERT_EQ(inherited(stats), servers);
  ServiceConfig::Server left;
  describe(left, *before[0], 1, *stats[0]);
  EXPECT_EQ(left.instance, before[0]->instance());
  EXPECT_TRUE(is_as_left(left, *stats[0]));
  const auto now = [&] { return *stats_of(executor(), {before[0]}).front(); };
  EXPECT_TRUE(is_as_left(left, now())) << "looking changes nothing";
  ASSERT_TRUE(answer_of<void>([&](auto done) { before[0]->drop({{1, 1}}, done); }));
  EXPECT_EQ(is_as_left(left, now()).error().code, Errc::conflict);
  ASSERT_TRUE(put(*before[0], {{5, 5}}));
  EXPECT_EQ(is_as_left(left, now()).error().code, Errc::conflict) << "as many, but others";
}

TEST_F(HeritageTest, AServerThatWasStartedAnewHasNothingToInherit) {
  const Links before = own_all(1);
  const Links next = read_all(before, 1, 2);
  start_server(1);
  const auto answers = inherit(executor(), next, 2);
  EXPECT_TRUE(answers[0] && answers[2]);
  EXPECT_FALSE(answers[1]);
}

}  // namespace
}  // namespace yado::pager
