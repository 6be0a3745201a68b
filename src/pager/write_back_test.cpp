// A paged program and real memory servers: what an heir finds there is what the program has.
#include "pager/write_back.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <csignal>

#include "image/temporary_directory.hpp"
#include "pager/memory_server.hpp"
#include "pager/paged_testing.hpp"

namespace yado::pager {
namespace {

using namespace testing;

class WriteBackTest : public ::testing::Test {
 protected:
  static constexpr unsigned mib = 32;
  static constexpr std::uint64_t pages = mib << 8, seed = 7;

  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: userfaultfd";
  }
  void TearDown() override {
    if (!paged_) return;
    paged_->process().kill();
    back_.reset();
    pager_->stop();
    network_.stop();
  }

  std::shared_ptr<ServerLink> open(std::size_t server, Role role, std::uint64_t epoch, std::uint64_t quota) {
    LinkOptions options{.hello = {.epoch = epoch, .generation = 1, .pages = pages, .quota_pages = quota, .role = role, .session = "vm", .from = 1}};
    auto link = ServerLink::make(network_.io.get_executor(), blocks_, {.unix_path = path(server), .address = {}, .port = 0, .expected_peer = {}}, options);
    EXPECT_TRUE(link);
    const auto welcome = boost::asio::co_spawn(network_.io, ServerLink::open(*link), boost::asio::use_future).get();
    EXPECT_TRUE(welcome) << welcome.error().text();
    return *link;
  }
  std::string path(std::size_t server) const { return directory_.path() / fmt::format("server-{}", server); }

  /// `quotas`: a server each.
  void start(std::uint64_t local_pages, const std::vector<std::uint64_t>& quotas, unsigned copies = 1) {
    std::vector<PageServer*> servers;
    for (std::size_t i = 0; i < quotas.size(); ++i) {
      memory_servers_.push_back(std::make_unique<MemoryServer>(MemoryServer::Options{.capacity_pages = 4 * pages}));
      ASSERT_TRUE(memory_servers_.back()->listen_unix(path(i), 0600));
      links_.push_back({open(i, Role::owner, 1, quotas[i]), fmt::format("h{}", i)});
      quotas_.push_back(quotas[i]);
      servers.push_back(links_.back().link.get());
    }
    auto paged = Paged::start(mib);
    ASSERT_TRUE(paged) << paged.error().text();
    paged_.emplace(std::move(*paged));
    remote_ = std::make_unique<Copies>(Copies::Options{pages, copies, seed}, servers);
    for (std::size_t i = 0; i < links_.size(); ++i)
      links_[i].link->on_dead([this, i](const Error&) { remote_->server_died(i); });
    pager_ = std::make_unique<Pager>(paged_->memory(), *remote_, network_.io.get_executor(),
                                     Pager::Options{{.pages = pages, .local_limit = local_pages}, seed, [this](const Error&) {
                                       ::kill(paged_->memory().process(), SIGKILL);
                                     }});
    ASSERT_TRUE(paged_->memory().go());
    EXPECT_EQ(paged_->hear(), fmt::format("ok pages={}", pages));
    EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
    local_ = local_pages;
  }
  WriteBack& leave(std::optional<std::size_t> landing) {
    back_ = std::make_unique<WriteBack>(*pager_, *remote_, network_.io.get_executor(), links_, WriteBack::Options{landing, local_, seed});
    return *back_;
  }
  /// What an heir finds: every page that a server has, by its content; two servers with different ones fail the test.
  std::map<PageNumber, std::vector<std::byte>> heirs_view() {
    std::map<PageNumber, std::vector<std::byte>> all;
    for (std::size_t i = 0; i < links_.size(); ++i) {
      const auto link = open(i, Role::heir, 2, quotas_[i]);
      std::vector<KindRun> held;
      for (PageNumber from = 0;;) {
        const auto frame = ask(*link, Operation::list, make_number(from));
        const auto batch = parse_batch(frame.body, BatchUse::listing);
        EXPECT_TRUE(batch);
        if (batch->runs.empty()) break;
        held.insert(held.end(), batch->runs.begin(), batch->runs.end());
        from = held.back().first + held.back().pages;
      }
      for (const KindRun& run : held)
        for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
          std::vector<std::byte> content(page_bytes);
          if (run.kind == PageKind::data) {
            const auto frame = ask(*link, Operation::get, make_batch(with_kind(std::vector<PageRun>{{page, 1}}, PageKind::wanted)));
            const auto batch = parse_batch(frame.body, BatchUse::answer);
            EXPECT_TRUE(batch && batch->data.size() == page_bytes);
            std::ranges::copy(batch->data, content.begin());
          }
          const auto [other, first] = all.emplace(page, content);
          EXPECT_TRUE(first || other->second == content) << "page " << page;
        }
      heirs_.push_back(link);
    }
    return all;
  }
  Frame ask(ServerLink& link, Operation operation, std::vector<std::byte> body) {
    std::promise<Result<Frame>> answer;
    boost::asio::post(network_.io, [&] { link.request(operation, std::move(body), [&](Result<Frame> frame) { answer.set_value(std::move(frame)); }); });
    auto frame = answer.get_future().get();
    EXPECT_TRUE(frame) << frame.error().text();
    return *frame;
  }
  /// Pages that are here, word for word.
  std::uint64_t wrong_pages(const std::map<PageNumber, std::vector<std::byte>>& found) {
    const std::vector<std::byte> zeros(page_bytes);
    std::vector<std::byte> content(page_bytes);
    std::uint64_t wrong = 0;
    const PageBits here = pager_->here();
    for (PageNumber page = here.next(0); page < pages; page = here.next(page + 1)) {
      EXPECT_TRUE(paged_->memory().read(page, content));
      const auto there = found.find(page);
      wrong += (there == found.end() ? zeros : there->second) != content ? 1 : 0;
    }
    EXPECT_GT(here.count(), 0u);
    return wrong;
  }

  image::TemporaryDirectory directory_;
  BlockPool blocks_{channel_block_bytes};
  Network network_;
  std::vector<std::unique_ptr<MemoryServer>> memory_servers_;
  std::vector<std::uint64_t> quotas_;
  std::vector<SplitSave::Server> links_;
  std::vector<std::shared_ptr<ServerLink>> heirs_;
  std::optional<Paged> paged_;
  std::unique_ptr<Copies> remote_;
  std::unique_ptr<Pager> pager_;
  std::unique_ptr<WriteBack> back_;
  std::uint64_t local_ = 0;
};

TEST_F(WriteBackTest, AnHeirFindsEveryPageAsItWasLast) {
  start(pages / 3, {pages, pages, pages});
  EXPECT_EQ(paged_->ask("z 10"), fmt::format("ok pages={}", pages));
  WriteBack& back = leave(2);
  ASSERT_TRUE(back.begin());
  EXPECT_FALSE(pager_->begin_save(false)) << "a checkpoint meanwhile";
  paged_->tell("w 400 100");  // all of it: pages come and go
  for (int round = 0; round < 3; ++round) {
    const auto done = back.round();
    ASSERT_TRUE(done) << done.error().text();
  }
  EXPECT_NE(paged_->hear().find(" bad=0"), std::string::npos);
  const Status finished = back.finish();  // it stands still: it waits for the next command
  ASSERT_TRUE(finished) << finished.error().text();
  EXPECT_EQ(wrong_pages(heirs_view()), 0u);
}

TEST_F(WriteBackTest, WithTwoCopiesBothAreTheNewest) {
  start(pages / 3, {2 * pages, 2 * pages, pages}, 2);
  WriteBack& back = leave(2);
  ASSERT_TRUE(back.begin());
  paged_->tell("w 400 60");
  ASSERT_TRUE(back.round());
  EXPECT_NE(paged_->hear().find(" bad=0"), std::string::npos);
  ASSERT_TRUE(back.finish());
  EXPECT_EQ(wrong_pages(heirs_view()), 0u);
}

TEST_F(WriteBackTest, WhatIsHereGoesToTheLanding) {
  start(pages / 4, {2 * pages, 2 * pages, pages});
  ASSERT_TRUE(leave(2).begin());
  ASSERT_TRUE(back_->finish());
  // All of it was here and nowhere else, but for duplicates of what came in unchanged.
  EXPECT_GE(network_.run([&] { return remote_->pages_at(2); }), pages / 8);
}

TEST_F(WriteBackTest, AMoveThatComesToNothingLeavesAMemoryThatGoesOn) {
  start(pages / 4, {pages, pages});
  ASSERT_TRUE(leave(std::nullopt).begin());
  paged_->tell("w 300 100");
  ASSERT_TRUE(back_->round());
  EXPECT_NE(paged_->hear().find(" bad=0"), std::string::npos);
  ASSERT_TRUE(back_->finish());
  back_.reset();
  EXPECT_NE(paged_->ask("w 500 100").find(" bad=0"), std::string::npos);
  EXPECT_NE(paged_->ask("v").find(" bad=0"), std::string::npos);
  EXPECT_LE(pager_->figures().table.in_file, pages / 4);
  ASSERT_TRUE(pager_->begin_save(false)) << "it is over";
  pager_->end_save(false);
}

/// What another host may go on with does not change for want of room here: an eviction may send pages, and drop others for them.
TEST_F(WriteBackTest, AsLongAsItStandsStillNothingLeavesForTheLimit) {
  start(pages / 4, {pages, pages});
  local_ = pages / 8;
  ASSERT_TRUE(leave(std::nullopt).begin());
  ASSERT_TRUE(back_->finish());
  const std::uint64_t here = pager_->here().count();
  ASSERT_GT(here, local_);
  back_.reset();
  EXPECT_EQ(pager_->figures().table.evicting, 0u);
  EXPECT_EQ(pager_->here().count(), here);
  EXPECT_NE(paged_->ask("v").find(" bad=0"), std::string::npos);
  EXPECT_LE(pager_->figures().table.in_file, pages / 8);
}

TEST_F(WriteBackTest, WithoutRoomForAllItSaysSoAndGoesOn) {
  start(pages / 2, {pages / 2, pages / 4});
  ASSERT_TRUE(leave(1).begin());
  const Status finished = back_->finish();
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().code, Errc::no_space) << finished.error().text();
  back_.reset();
  EXPECT_NE(paged_->ask("w 300 100").find(" bad=0"), std::string::npos);
  EXPECT_NE(paged_->ask("v").find(" bad=0"), std::string::npos);
}

TEST_F(WriteBackTest, AServerThatDiesMeanwhileIsAnErrorOrReplaced) {
  start(pages / 3, {2 * pages, 2 * pages, 2 * pages}, 2);
  ASSERT_TRUE(leave(2).begin());
  ASSERT_TRUE(back_->round());
  memory_servers_[1].reset();
  ASSERT_TRUE(back_->finish()) << "two copies";
  links_.erase(links_.begin() + 1);
  EXPECT_NE(paged_->ask("v").find(" bad=0"), std::string::npos);
}

}  // namespace
}  // namespace yado::pager
