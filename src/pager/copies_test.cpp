// Copies over servers that are a few lines each: answers late, out of step with each other, servers dying, lying, full.

#include <algorithm>
#include <deque>
#include <random>

#include "base/log.hpp"
#include "pager/pager_testing.hpp"
#include "pager/remote_memory.hpp"

namespace yado::pager {
namespace {

constexpr std::uint64_t seed_of_sums = 42;

/// Carries out its requests in their order when it is told to, and answers when it is told to.
class FakeServer : public PageServer {
 public:
  FakeServer(std::string name, std::uint64_t quota) : name_(std::move(name)), quota_(quota) {}

  void get(std::vector<PageRun> pages, Got got) override {
    auto answer = std::make_shared<Result<std::pair<Batch, Frame>>>(fail(Errc::internal, ""));
    add([this, pages = std::move(pages), answer] { *answer = look_up(pages); },
        [got, answer](const Error* error) { got(error != nullptr ? std::unexpected(*error) : std::move(*answer)); });
  }
  void put(PutBatch batch, Done done) override {
    for (const PageNumber page : batch.pages) ++unacknowledged[page];
    auto status = std::make_shared<Status>();
    auto pages = batch.pages;
    add([this, batch = std::move(batch), status] { *status = store(batch); },
        [this, done, status, pages = std::move(pages)](const Error* error) {
          for (const PageNumber page : pages) --unacknowledged[page];
          done(error != nullptr ? Status(std::unexpected(*error)) : *status);
        });
  }
  void drop(std::vector<PageRun> pages, Done done) override {
    EXPECT_FALSE(pages.empty());
    add([this, pages = std::move(pages)] {
          for (const PageRun& run : pages)
            for (PageNumber page = run.first; page < run.first + run.pages; ++page) held.erase(page);
        },
        [done](const Error* error) { done(error != nullptr ? Status(std::unexpected(*error)) : Status{}); });
  }
  bool alive() const override { return alive_; }
  bool connected() const override { return connected_now; }
  bool writable() const override { return takes_pages; }
  std::uint64_t quota_pages() const override { return quota_; }
  const std::string& name() const override { return name_; }
  void distrust(const Error&) override {}

  bool busy() const { return !under_way_.empty(); }
  /// Carries out a request, or answers one. False: there is nothing to do.
  bool step(bool rather_answer) {
    if (under_way_.empty()) return false;
    const bool answer = carried_out_ > 0 && (rather_answer || carried_out_ == under_way_.size());
    if (!answer) {
      under_way_[carried_out_++].carry_out();
      return true;
    }
    const Request request = std::move(under_way_.front());
    under_way_.pop_front();
    --carried_out_;
    const Error dead{Errc::unavailable, "it is dead"};
    request.answer(alive_ ? nullptr : &dead);
    return true;
  }
  /// As a link does it: first its pager hears of it, then its requests fail, also those that were carried out.
  void die(const std::function<void()>& tell) {
    alive_ = false;
    held.clear();
    tell();
    const Error dead{Errc::refused, "it died"};
    carried_out_ = 0;
    for (const Request& request : std::exchange(under_way_, {})) request.answer(&dead);
  }
  std::uint64_t data_pages() const {
    return static_cast<std::uint64_t>(std::ranges::count_if(held, [](const auto& page) { return page.second != 0; }));
  }

  Contents held;
  std::map<PageNumber, int> unacknowledged;
  std::function<bool(const std::vector<PageRun>&)> refuses;  ///< a GET
  bool connected_now = true, takes_pages = true;
  std::uint64_t puts = 0;
  std::set<PageNumber> unchanged;  ///< said to be, when it was put last

 private:
  struct Request {
    std::function<void()> carry_out;
    std::function<void(const Error*)> answer;
  };
  void add(std::function<void()> carry_out, std::function<void(const Error*)> answer) {
    if (!alive_) carry_out = [] {};
    under_way_.push_back({std::move(carry_out), std::move(answer)});
  }
  Result<std::pair<Batch, Frame>> look_up(const std::vector<PageRun>& pages) const {
    if (refuses && refuses(pages)) return fail(Errc::io, "a bad disk");
    Batch batch;
    auto space = std::make_shared<std::vector<std::byte>>();
    for (const PageRun& run : pages)
      for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
        const auto found = held.find(page);
        append(batch.runs, page, found == held.end() ? PageKind::absent : found->second == 0 ? PageKind::zero : PageKind::data);
        if (found == held.end() || found->second == 0) continue;
        const Page content = page_with(found->second);
        space->insert(space->end(), content.begin(), content.end());
      }
    batch.data = *space;
    return std::pair(batch, Frame{{}, {}, std::shared_ptr<const std::byte[]>(space, space->data())});
  }
  Status store(const PutBatch& batch) {
    ++puts;
    Contents after = held;
    for (std::size_t i = 0; i < batch.pages.size(); ++i)
      after[batch.pages[i]] =
          contents_of({{batch.pages[i], 1, PageKind::data}}, Bytes(batch.contents[i], page_bytes)).begin()->second;
    const auto used = static_cast<std::uint64_t>(std::ranges::count_if(after, [](const auto& page) { return page.second != 0; }));
    if (used > quota_) return fail(Errc::no_space, "{} pages of {}", used, quota_);
    held = std::move(after);
    for (const PageNumber page : batch.pages)
      if (batch.unchanged) unchanged.insert(page); else unchanged.erase(page);
    return {};
  }

  std::string name_;
  std::uint64_t quota_;
  bool alive_ = true;
  std::deque<Request> under_way_;
  std::size_t carried_out_ = 0;
};

Evicted evicted(const Contents& contents) {
  auto pages = std::make_shared<std::vector<Page>>();
  pages->reserve(contents.size());
  Evicted out;
  for (const auto& [page, number] : contents) {
    pages->push_back(page_with(number));
    out.piece.pages.push_back(page);
    out.piece.contents.push_back(number == 0 ? nullptr : pages->back().data());
    out.sums.push_back(sum_of(pages->back(), seed_of_sums));
  }
  out.piece.hold = pages;
  return out;
}

Contents contents_of_piece(const Piece& piece) {
  Contents out;
  for (std::size_t i = 0; i < piece.pages.size(); ++i)
    out[piece.pages[i]] = piece.contents[i] == nullptr
                              ? 0
                              : contents_of({{piece.pages[i], 1, PageKind::data}}, Bytes(piece.contents[i], page_bytes)).begin()->second;
  return out;
}

// ---- one thing at a time ---------------------------------------------------------------------------------------------

class CopiesTest : public testing::Test {
 protected:
  void make(unsigned how_many_servers, unsigned copies, std::uint64_t quota = 1000) {
    std::vector<PageServer*> all;
    for (unsigned i = 0; i < how_many_servers; ++i) {
      servers.push_back(std::make_unique<FakeServer>("s" + std::to_string(i), quota));
      all.push_back(servers.back().get());
    }
    remote = std::make_unique<Copies>(Copies::Options{.pages = 2000, .copies = copies, .seed = seed_of_sums}, all);
  }
  void settle() {
    bool any = true;
    while (std::exchange(any, false))
      for (auto& server : servers) any = server->step(true) || any;
  }
  Status store(const Contents& contents) {
    std::optional<Status> done;
    remote->store(evicted(contents), [&](const Status& status) { done = status; });
    settle();
    return done.value_or(fail(Errc::internal, "never answered"));
  }
  Result<Contents> fetch(std::vector<PageNumber> pages) {
    Contents out;
    std::optional<Error> failed;
    remote->fetch(pages, [&](const Result<Piece>& piece) {
      if (!piece) return void(failed = piece.error());
      out.merge(contents_of_piece(*piece));
    });
    settle();
    if (failed) return std::unexpected(*failed);
    EXPECT_EQ(out.size(), pages.size());
    return out;
  }
  void kill(std::size_t server) {
    servers[server]->die([&] { remote->server_died(server); });
    settle();
  }

  std::vector<std::unique_ptr<FakeServer>> servers;
  std::unique_ptr<Copies> remote;
};

TEST_F(CopiesTest, AtFirstEveryPageIsZeroAndNobodyIsAsked) {
  make(2, 1);
  bool inside = false;
  remote->fetch({3, 4}, [&](const Result<Piece>& piece) { inside = piece && contents_of_piece(*piece) == Contents{{3, 0}, {4, 0}}; });
  EXPECT_TRUE(inside);
  EXPECT_FALSE(servers[0]->busy() || servers[1]->busy());
}

TEST_F(CopiesTest, APageIsStoredWhenAllItsServersHaveIt) {
  make(3, 2);
  int stored = 0;
  remote->store(evicted({{1, 1}, {2, 2}, {600, 6}}), [&](const Status& status) { stored += status.has_value(); });
  while (servers[0]->step(true) || servers[1]->step(true)) {}
  EXPECT_EQ(stored, 0) << "600 is in another region, whose second server has not answered";
  settle();
  EXPECT_EQ(stored, 1);
  EXPECT_EQ(remote->pages_at(0) + remote->pages_at(1) + remote->pages_at(2), 6u);
  EXPECT_EQ(fetch({1, 2, 600}).value(), (Contents{{1, 1}, {2, 2}, {600, 6}}));
}

TEST_F(CopiesTest, EvictingAPageUnchangedSendsNothing) {
  make(2, 2);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 0}}));
  ASSERT_TRUE(fetch({1, 2, 3}));
  const std::uint64_t before = remote->counts().pages_sent;
  ASSERT_TRUE(store({{1, 1}, {2, 22}, {3, 0}}));
  EXPECT_EQ(remote->counts().pages_sent - before, 2u) << "page 2, to both";
  EXPECT_EQ(remote->counts().pages_clean, 3u) << "page 3 twice: it was zero before";
  EXPECT_EQ(fetch({1, 2, 3}).value(), (Contents{{1, 1}, {2, 22}, {3, 0}}));
}

TEST_F(CopiesTest, WhatIsUnchangedSinceTheLastCutIsSentAsSuch) {
  make(1, 1);
  Evicted both = evicted({{1, 1}, {2, 2}, {3, 3}});
  both.unchanged = {true, false, true};
  remote->store(std::move(both), [](const Status& status) { EXPECT_TRUE(status); });
  settle();
  EXPECT_EQ(servers[0]->held, (Contents{{1, 1}, {2, 2}, {3, 3}}));
  EXPECT_EQ(servers[0]->unchanged, (std::set<PageNumber>{1, 3}));
}

TEST_F(CopiesTest, AnAdoptedPageIsCleanOnceItWasSeen) {
  make(1, 1);
  servers[0]->held = {{5, 50}, {6, 0}};
  remote->adopt(std::vector<KindRun>{{5, 1, PageKind::data}, {6, 1, PageKind::zero}}, 0);
  ASSERT_EQ(fetch({5, 6}).value(), (Contents{{5, 50}, {6, 0}}));
  ASSERT_TRUE(store({{5, 50}, {6, 0}}));
  EXPECT_EQ(remote->counts().pages_sent, 0u);
}

TEST_F(CopiesTest, AZeroPageTakesNoRoom) {
  make(1, 1);
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  ASSERT_TRUE(fetch({1, 2}));
  ASSERT_TRUE(store({{1, 0}, {2, 2}}));
  EXPECT_EQ(servers[0]->held, (Contents{{2, 2}}));
  EXPECT_EQ(remote->pages_at(0), 1u);
}

TEST_F(CopiesTest, ADeadServersPagesComeFromTheOtherAndAreCopiedAgain) {
  make(3, 2);
  Contents all;
  for (PageNumber page = 0; page < 2000; page += 9) all[page] = page + 1;
  for (auto at = all.begin(); at != all.end();) {
    Contents some;
    for (; at != all.end() && some.size() < 60; ++at) some.insert(*at);
    ASSERT_TRUE(store(some));
  }
  EXPECT_EQ(remote->pages_without_redundancy(), 0u);
  servers[1]->die([&] { remote->server_died(1); });
  EXPECT_GT(remote->pages_without_redundancy(), 0u);
  settle();
  EXPECT_EQ(remote->pages_without_redundancy(), 0u);
  EXPECT_FALSE(remote->rebuilding());
  kill(0);
  for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, WhatAllItsServersLostIsLostAndSaysSo) {
  make(2, 1);
  ASSERT_TRUE(store({{1, 1}, {600, 6}}));
  kill(0);
  EXPECT_TRUE(remote->lost(1));
  EXPECT_FALSE(remote->lost(600));
  EXPECT_NE(fetch({1}).error().message.find("page 1 is lost"), std::string::npos);
  EXPECT_EQ(fetch({600}).value(), (Contents{{600, 6}}));
  ASSERT_TRUE(store({{2, 2}})) << "new ones go to who lives";
  kill(1);
  EXPECT_EQ(store({{3, 3}}).error().code, Errc::no_space);
}

TEST_F(CopiesTest, AWrongContentIsNeverGivenOn) {
  make(2, 2);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 3}}));
  servers[0]->held[1] = 99;
  servers[0]->held[2] = 0;
  servers[0]->held.erase(3);
  EXPECT_EQ(fetch({1, 2, 3}).value(), (Contents{{1, 1}, {2, 2}, {3, 3}}));
  EXPECT_EQ(remote->counts().wrong_contents, 3u);
}

TEST_F(CopiesTest, OneBadPageDoesNotTakeItsNeighboursAlong) {
  make(1, 1);
  Contents all;
  for (PageNumber page = 0; page < 20; ++page) all[page] = page + 1;
  ASSERT_TRUE(store(all));
  servers[0]->refuses = [](const std::vector<PageRun>& runs) {
    return std::ranges::any_of(runs, [](const PageRun& run) { return run.first <= 13 && 13 < run.first + run.pages; });
  };
  EXPECT_FALSE(fetch({12, 13, 14}));
  all.erase(13);
  for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, DuplicatesMakeRoomForWhatMustBeRemote) {
  make(1, 1, 100);
  Contents remote_ones;
  for (PageNumber page = 0; page < 100; ++page) remote_ones[page] = page + 1;
  ASSERT_TRUE(store(remote_ones));
  EXPECT_EQ(servers[0]->data_pages(), 100u);
  // A page comes, another one goes: for ever, with a quota that just fits what is remote.
  std::mt19937 random(1);
  PageNumber next = 100;
  for (int i = 0; i < 500; ++i) {
    auto chosen = remote_ones.begin();
    std::advance(chosen, random() % remote_ones.size());
    const auto [page, number] = *chosen;
    ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
    remote_ones.erase(chosen);
    ASSERT_TRUE(store({{next, next + 1}})) << i;
    remote_ones[next] = next + 1;
    next = next == 1999 ? 0 : next + 1;
    while (remote_ones.contains(next)) ++next;
  }
  EXPECT_GT(remote->counts().duplicates_dropped, 0u);
  for (const auto& [page, number] : remote_ones) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, AnEvictionThatWasUndoneTakesNoRoomForEver) {
  make(1, 1, 3);
  ASSERT_TRUE(store({{1, 1}, {2, 2}, {3, 3}}));
  remote->kept(std::vector<PageNumber>{2});
  ASSERT_TRUE(store({{4, 4}}));
  EXPECT_EQ(servers[0]->held, (Contents{{1, 1}, {3, 3}, {4, 4}}));
  EXPECT_EQ(store({{5, 5}}).error().code, Errc::no_space);
}

TEST_F(CopiesTest, AFullServersShareGoesToTheOthers) {
  make(3, 1, 10);
  Contents all;
  for (PageNumber page = 0; page < 30; ++page) all[page] = page + 1;
  ASSERT_TRUE(store(all)) << "one region, whose first server takes ten";
  for (const auto& server : servers) EXPECT_EQ(server->data_pages(), 10u);
  EXPECT_EQ(store({{40, 1}}).error().code, Errc::no_space);
  EXPECT_EQ(servers[0]->puts + servers[1]->puts + servers[2]->puts, 3u) << "what cannot fit is not sent";
}

TEST_F(CopiesTest, AnImageOnADiskGivesAndTakesNothing) {
  make(2, 1);
  servers[1]->takes_pages = false;
  servers[1]->held = {{1, 1}, {2, 2}};
  remote->adopt(std::vector<KindRun>{{1, 2, PageKind::data}}, 1);
  ASSERT_EQ(fetch({1, 2}).value(), (Contents{{1, 1}, {2, 2}}));
  ASSERT_TRUE(store({{1, 1}, {2, 22}}));
  EXPECT_EQ(servers[1]->held, (Contents{{1, 1}, {2, 2}}));
  EXPECT_EQ(servers[0]->held, (Contents{{2, 22}}));
  EXPECT_EQ(fetch({1, 2}).value(), (Contents{{1, 1}, {2, 22}}));
}

TEST_F(CopiesTest, OfTwoStoresUnderWayTheLaterCounts) {
  make(3, 2);
  int stored = 0;
  const auto done = [&](const Status& status) { stored += status.has_value(); };
  remote->store(evicted({{1, 1}}), done);
  servers[0]->step(false);
  remote->store(evicted({{1, 2}}), done);
  remote->store(evicted({{1, 0}}), done);
  remote->store(evicted({{1, 3}}), done);
  settle();
  EXPECT_EQ(stored, 4);
  EXPECT_EQ(fetch({1}).value(), (Contents{{1, 3}}));
  kill(0);
  EXPECT_EQ(fetch({1}).value(), (Contents{{1, 3}}));
}

TEST_F(CopiesTest, PagesMoveToANewServerWhileTheyAreUsed) {
  make(1, 1);
  Contents all;
  for (PageNumber page = 0; page < 50; ++page) all[page] = page + 1;
  ASSERT_TRUE(store(all));
  servers.push_back(std::make_unique<FakeServer>("new", 1000));
  ASSERT_EQ(remote->add_server(servers[1].get()), 1u);
  const std::vector<PageRun> runs{{10, 30}};
  const Copies::Moving moving = remote->begin_move(runs, 0, 1);
  EXPECT_EQ(moving.pages.size(), 30u);
  // What happens meanwhile: page 12 is stored anew, 13 becomes zero, 14 is read.
  ASSERT_TRUE(store({{12, 120}, {13, 0}}));
  EXPECT_EQ(fetch({14}).value(), (Contents{{14, 15}}));
  for (PageNumber page = 10; page < 40; ++page) servers[1]->held.emplace(page, all[page]);  // as the mover puts them: late
  remote->end_move(moving, true);
  settle();
  all[12] = 120;
  all[13] = 0;
  EXPECT_EQ(servers[0]->data_pages(), 21u) << "the other twenty, and 12";
  EXPECT_EQ(servers[1]->data_pages(), 28u);
  EXPECT_EQ(remote->pages_at(0), 21u);
  EXPECT_EQ(remote->pages_at(1), 28u);
  for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}).value(), (Contents{{page, number}}));
}

TEST_F(CopiesTest, AMoveThatFailedChangesNothing) {
  make(2, 1);
  ASSERT_TRUE(store({{1, 1}, {2, 2}}));
  const std::vector<PageRun> runs{{0, 10}};
  const Copies::Moving moving = remote->begin_move(runs, 0, 1);
  servers[1]->held = {{1, 1}};
  remote->end_move(moving, false);
  settle();
  EXPECT_TRUE(servers[1]->held.empty());
  EXPECT_EQ(remote->pages_at(1), 0u);
  kill(1);
  EXPECT_EQ(fetch({1, 2}).value(), (Contents{{1, 1}, {2, 2}}));
}

// ---- everything at once ----------------------------------------------------------------------------------------------

/// A pager of few pages over few servers, all of whose choices come from a seed. It knows what every page must contain.
class Simulation {
 public:
  struct Plan {
    unsigned seed = 0, servers = 3, copies = 1, deaths = 0;
    std::uint64_t quota = 0;  ///< of each server
    unsigned used_pages = 260;  ///< of `pages`, spread evenly
    unsigned zeros_of_100 = 12; ///< of what is written
    unsigned harm_of_1000 = 0;  ///< how often a held page is changed under its server
  };
  static constexpr PageNumber pages = 1300;  // three regions
  static constexpr std::size_t local_limit = 60, kept_local = 30, most_evicted = 8;

  explicit Simulation(const Plan& plan) : plan_(plan), random_(plan.seed) {
    std::vector<PageServer*> all;
    for (unsigned i = 0; i < plan.servers; ++i) {
      servers_.push_back(std::make_unique<FakeServer>("s" + std::to_string(i), plan.quota));
      all.push_back(servers_.back().get());
    }
    remote_ = std::make_unique<Copies>(Copies::Options{.pages = pages, .copies = plan.copies, .seed = seed_of_sums}, all);
  }

  /// False: a page was lost, and rightly so.
  bool run() {
    for (int step = 0; step < 6000 && !lost_ && !testing::Test::HasFailure(); ++step) {
      const auto dice = random_() % 100;
      if (dice < 55)
        step_a_server();
      else if (dice < 75)
        touch();
      else if (dice < 97)
        evict();
      else if (random_() % 1000 < plan_.harm_of_1000)
        harm();
      else if (plan_.deaths > 0 && random_() % 150 == 0)
        kill();
      for (auto& server : servers_) {
        EXPECT_LE(server->data_pages(), plan_.quota);
        if (random_() % 50 == 0) server->connected_now = !server->connected_now;
      }
    }
    return !lost_;
  }

  /// No more faults: everything comes to rest as it should be.
  void check_at_rest() {
    while (step_a_server()) {}
    EXPECT_FALSE(remote_->rebuilding());
    std::size_t living = 0;
    for (std::size_t i = 0; i < servers_.size(); ++i) {
      if (!servers_[i]->alive()) continue;
      ++living;
      EXPECT_EQ(remote_->pages_at(i), servers_[i]->data_pages()) << "they differ about server " << i;
    }
    if (plan_.copies <= living && plan_.quota >= pages && plan_.harm_of_1000 == 0) {
      EXPECT_EQ(remote_->pages_without_redundancy(), 0u);
      for (PageNumber page = 0; page < pages; ++page) {
        if (local_.contains(page) || content(page) == 0 || remote_->lost(page)) continue;
        EXPECT_GE(holders(page), plan_.copies) << "page " << page;
      }
    }
    for (PageNumber page = 0; page < pages && !lost_; ++page)
      if (!local_.contains(page) && !fetching_.contains(page)) fetch(page);
    while (!lost_ && step_a_server()) {}
    EXPECT_TRUE(lost_ || fetching_.empty());
  }
  std::uint64_t failed_stores() const { return failed_stores_; }
  const Copies::Counts& counts() const { return remote_->counts(); }

 private:
  std::uint64_t content(PageNumber page) const {
    const auto found = contents_.find(page);
    return found == contents_.end() ? 0 : found->second;
  }
  std::size_t holders(PageNumber page) const {
    return static_cast<std::size_t>(std::ranges::count_if(servers_, [&](const auto& server) {
      const auto found = server->held.find(page);
      const auto waits = server->unacknowledged.find(page);
      return server->alive() && found != server->held.end() && found->second == content(page) &&
             (waits == server->unacknowledged.end() || waits->second == 0);
    }));
  }
  bool step_a_server() {
    const std::size_t first = random_() % servers_.size();
    for (std::size_t i = 0; i < servers_.size(); ++i)
      if (servers_[(first + i) % servers_.size()]->step(random_() % 2 == 0)) return true;
    return false;
  }
  /// The guest reads or writes a page.
  void touch() {
    const PageNumber page = random_() % plan_.used_pages * (pages / plan_.used_pages);
    if (!local_.contains(page)) {
      if (local_.size() + fetching_.size() < local_limit && !fetching_.contains(page)) fetch(page);
      return;
    }
    write(page);
    if (const auto storing = storing_.find(page); storing != storing_.end()) storing_.erase(storing);  // undone
  }
  void write(PageNumber page) {
    if (random_() % 2 == 0) contents_[page] = random_() % 100 < plan_.zeros_of_100 ? 0 : ++last_number_;
  }
  void fetch(PageNumber page) {
    fetching_.insert(page);
    remote_->fetch({page}, [this, page](const Result<Piece>& piece) {
      fetching_.erase(page);
      if (!piece) {
        lost_ = true;
        EXPECT_TRUE(harmed_.contains(page) || holders(page) == 0) << "page " << page << " is there: " << piece.error().text();
        return;
      }
      EXPECT_EQ(contents_of_piece(*piece), (Contents{{page, content(page)}})) << "seed " << plan_.seed;
      local_.insert(page);
      write(page);
    });
  }
  void evict() {
    if (local_.size() < under_way_ + kept_local) return;
    Contents batch;
    const std::size_t most = 1 + random_() % most_evicted;
    auto at = local_.lower_bound(random_() % pages);
    for (; at != local_.end() && batch.size() < most; ++at)
      if (!storing_.contains(*at)) batch[*at] = content(*at);
    if (batch.empty()) return;
    const std::uint64_t ticket = ++last_ticket_;
    for (const auto& [page, number] : batch) storing_[page] = ticket;
    under_way_ += batch.size();
    remote_->store(evicted(batch), [this, ticket, batch](const Status& status) {
      failed_stores_ += !status;
      under_way_ -= batch.size();
      std::vector<PageNumber> undone;
      for (const auto& [page, number] : batch) {
        const auto storing = storing_.find(page);
        if (storing == storing_.end() || storing->second != ticket) {
          if (storing == storing_.end() && local_.contains(page)) undone.push_back(page);
          continue;
        }
        storing_.erase(storing);
        if (!status) continue;
        local_.erase(page);  // punched out: from here on it must be had from the others
        if (holders(page) > 0) harmed_.erase(page);
      }
      if (status) remote_->kept(undone);
    });
  }
  void harm() {
    FakeServer& server = *servers_[random_() % servers_.size()];
    if (server.held.empty()) return;
    auto at = server.held.begin();
    std::advance(at, random_() % server.held.size());
    harmed_.insert(at->first);
    if (random_() % 2 == 0)
      at->second = 0;
    else
      server.held.erase(at);
  }
  void kill() {
    --plan_.deaths;
    const std::size_t server = random_() % servers_.size();
    if (servers_[server]->alive()) servers_[server]->die([&] { remote_->server_died(server); });
  }

  Plan plan_;
  std::mt19937 random_;
  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::unique_ptr<Copies> remote_;
  Contents contents_;              ///< what each page must contain
  std::set<PageNumber> local_, fetching_, harmed_;
  std::map<PageNumber, std::uint64_t> storing_;  ///< page -> the ticket that will evict it
  std::size_t under_way_ = 0;      ///< pages of stores that were not answered
  std::uint64_t last_number_ = 0, last_ticket_ = 0, failed_stores_ = 0;
  bool lost_ = false;
};

class CopiesSimulationTest : public testing::Test {};

TEST_F(CopiesSimulationTest, WithoutFaultsNothingIsLostWhateverTheDelays) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation({.seed = seed, .servers = 1 + seed % 4, .copies = 1 + seed % 2, .quota = 2000});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ASSERT_EQ(simulation.failed_stores(), 0u);
    ASSERT_GT(simulation.counts().pages_clean, 0u);
  }
}

TEST_F(CopiesSimulationTest, AQuotaThatJustFitsIsEnough) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const unsigned servers = 1 + seed % 4;
    constexpr std::uint64_t must_be_remote = 130 - Simulation::kept_local + Simulation::most_evicted;
    Simulation simulation({.seed = seed, .servers = servers, .quota = (must_be_remote + servers - 1) / servers, .used_pages = 130, .zeros_of_100 = 1});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    ASSERT_EQ(simulation.failed_stores(), 0u) << "seed " << seed;
    ASSERT_GT(simulation.counts().duplicates_dropped, 0u) << "there was no need";
  }
}

TEST_F(CopiesSimulationTest, AReplicaSurvivesDeathsAndIsRebuilt) {
  unsigned lost = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation({.seed = seed, .servers = 3 + seed % 3, .copies = 2, .deaths = 1 + seed % 2, .quota = 2000});
    lost += !simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_LT(lost, 30u);
}

TEST_F(CopiesSimulationTest, OneDeathNeverLosesAReplicatedPage) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    Simulation simulation({.seed = seed, .servers = 2 + seed % 3, .copies = 2, .deaths = 1, .quota = 2000});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(CopiesSimulationTest, WithoutReplicasOnlyWhatTheDeadHeldIsLost) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation({.seed = seed, .servers = 2 + seed % 3, .copies = 1, .deaths = 1, .quota = 2000});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(CopiesSimulationTest, HarmedPagesAreNeverTakenForRight) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation({.seed = seed, .servers = 2 + seed % 3, .copies = 1 + seed % 2, .deaths = seed % 2, .quota = 2000, .harm_of_1000 = 300});
    simulation.run();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(CopiesSimulationTest, ReplicasWithLittleRoom) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Simulation simulation({.seed = seed, .servers = 3 + seed % 2, .copies = 2, .deaths = seed % 2, .quota = 60 + seed});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace yado::pager
