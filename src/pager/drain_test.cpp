#include "pager/drain.hpp"

#include "pager/copies_testing.hpp"

namespace yado::pager {
namespace {

/// Servers that are added and emptied; movers between them that are late, and see what is there at two moments.
class Moves {
 public:
  Moves(Copies& copies, const std::vector<FakeServer*>& servers) : copies_(copies), servers_(servers) {}

  Drain::Ways ways(std::function<std::size_t(const std::vector<PageNumber>&)> bring, bool bring_first = false) {
    const auto move = [this](const Copies::Moving& moving, PageServer::Done done) {
      ++asked;
      under_way_.push_back({moving, servers_[moving.from], servers_[moving.to], 0, {}, std::move(done)});
    };
    return {move, std::move(bring), bring_first};
  }
  /// Carries some MOVE on by a step.
  bool step(unsigned random) {
    if (under_way_.empty()) return false;
    const auto at = under_way_.begin() + random % under_way_.size();
    Move& move = *at;
    std::optional<Error> failed = refused;
    if (!move.from->alive() || !move.to->alive()) failed = Error{Errc::unavailable, "it died"};
    if (!failed && random % 3 > 0 && move.next < move.moving.pages.size()) {
      const auto found = move.from->held.find(move.moving.pages[move.next++]);
      if (found != move.from->held.end()) move.sent.push_back(*found);
      return true;
    }
    if (!failed && !move.sent.empty()) {
      const auto [page, number] = move.sent.front();
      move.sent.pop_front();
      if (const Status added = move.to->add_page(page, number); !added) failed = added.error();
    }
    if (!failed && (!move.sent.empty() || move.next < move.moving.pages.size())) return true;
    const PageServer::Done done = std::move(move.done);
    under_way_.erase(at);
    done(failed ? Status(std::unexpected(*failed)) : Status{});
    return true;
  }
  std::optional<Error> refused;  ///< every MOVE is
  unsigned asked = 0;

 private:
  struct Move {
    Copies::Moving moving;
    FakeServer *from, *to;
    std::size_t next;
    std::deque<std::pair<PageNumber, std::uint64_t>> sent;
    PageServer::Done done;
  };
  Copies& copies_;
  const std::vector<FakeServer*>& servers_;
  std::vector<Move> under_way_;
};

// ---- one thing at a time ---------------------------------------------------------------------------------------------

class DrainTest : public CopiesFixture {
 protected:
  void make(unsigned how_many, unsigned copies, std::uint64_t quota = 1000, std::uint64_t pages = 2000) {
    CopiesFixture::make(how_many, copies, quota, pages);
    for (const auto& server : servers) by_number.push_back(server.get());
    moves = std::make_unique<Moves>(*remote, by_number);
  }
  void add_server(std::uint64_t quota) {
    by_number.push_back(new_server("new", quota));
    remote->add_server(by_number.back()).value();
  }
  bool step_beside() override { return moves->step(static_cast<unsigned>(random())); }
  void store(const Contents& contents) { EXPECT_TRUE(CopiesFixture::store(contents)); }
  Contents fetch(std::vector<PageNumber> pages) { return CopiesFixture::fetch(std::move(pages)).value(); }
  static Contents numbered(PageNumber from, PageNumber to) {
    Contents contents;
    for (PageNumber page = from; page < to; ++page) contents[page] = page + 1;
    return contents;
  }
  static std::vector<PageNumber> pages_of(const Contents& contents) {
    std::vector<PageNumber> pages;
    for (const auto& [page, number] : contents) pages.push_back(page);
    return pages;
  }
  void start(std::size_t server, bool bring_first = false) {
    const auto bring = [this](const std::vector<PageNumber>& pages) {
      std::size_t seen = 0;
      for (; seen < pages.size(); ++seen) {
        if (asked_here.contains(pages[seen])) continue;
        if (asked_here.size() == room_here) break;
        asked_here.insert(pages[seen]);
        remote->fetch({pages[seen]}, [&](const Result<Piece>& piece) { here.merge(contents_of_piece(piece.value())); });
      }
      return seen;
    };
    drain = std::make_unique<Drain>(*remote, server, moves->ways(bring, bring_first), [&](const Status& status) { ended = status; });
    remote->on_settled([this] { drain->go_on(); });
    drain->go_on();
  }
  void drain_all_of(std::size_t server, bool bring_first = false) {
    start(server, bring_first);
    settle();
  }

  std::mt19937 random{1};
  std::vector<FakeServer*> by_number;
  std::unique_ptr<Moves> moves;
  std::unique_ptr<Drain> drain;
  std::optional<Status> ended;
  std::size_t room_here = 0;
  std::set<PageNumber> asked_here;
  Contents here;
};

TEST_F(DrainTest, ItsPagesGoStraightToANewServer) {
  make(1, 1);
  store(numbered(0, 250));
  add_server(1000);
  const std::uint64_t sent = remote->counts().pages_sent;
  drain_all_of(0);
  ASSERT_TRUE(ended && *ended);
  EXPECT_TRUE(servers[0]->held.empty());
  EXPECT_EQ(servers[1]->held, numbered(0, 250));
  EXPECT_EQ(remote->counts().pages_sent, sent) << "through this host";
  EXPECT_EQ(remote->pages_at(0), 0u);
  EXPECT_EQ(remote->pages_at(1), 250u);
  EXPECT_EQ(fetch({7, 8}), numbered(7, 9));
}

TEST_F(DrainTest, WhatHappensMeanwhileCounts) {
  make(2, 1);
  store(numbered(0, 50));  // one region: all on the first
  ASSERT_EQ(servers[0]->data_pages(), 50u);
  start(0);
  // Page 12 is stored anew, 13 becomes zero, 14 is read, 100 comes.
  Contents all = numbered(0, 50);
  for (const auto& [page, number] : Contents{{12, 120}, {13, 0}, {100, 7}}) all[page] = number;
  store({{12, 120}, {13, 0}, {100, 7}});
  EXPECT_EQ(fetch({14}), (Contents{{14, 15}}));
  settle();
  ASSERT_TRUE(ended && *ended);
  EXPECT_TRUE(servers[0]->held.empty());
  EXPECT_EQ(servers[1]->data_pages(), 50u) << "and 100, without 13";
  for (const auto& [page, number] : all) ASSERT_EQ(fetch({page}), (Contents{{page, number}}));
}

TEST_F(DrainTest, ADuplicateIsDroppedAndNotMoved) {
  make(2, 1);
  store(numbered(0, 20));
  ASSERT_EQ(fetch({3, 4}), numbered(3, 5));
  drain_all_of(0);
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ(servers[1]->data_pages(), 18u);
}

TEST_F(DrainTest, BothCopiesAreOnTwoServersAfterwards) {
  make(3, 2);
  store(numbered(0, 100));  // on s0 and s1
  drain_all_of(0);
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ(servers[1]->held, numbered(0, 100));
  EXPECT_EQ(servers[2]->held, numbered(0, 100));
  EXPECT_EQ(remote->pages_without_redundancy(), 0u);
}

TEST_F(DrainTest, WhatFindsNoOtherServerComesHere) {
  make(2, 1, 100);
  store(numbered(0, 100));
  store(numbered(600, 660));  // on s1, which has room for forty more
  room_here = 60;
  drain_all_of(0);
  ASSERT_TRUE(ended && *ended) << ended->error().text();
  EXPECT_EQ(here.size(), 60u);
  EXPECT_EQ(servers[1]->data_pages(), 100u);
  EXPECT_TRUE(servers[0]->held.empty());
}

TEST_F(DrainTest, HereFirstWhereThatIsWanted) {
  make(2, 1);
  store(numbered(0, 100));
  room_here = 30;
  drain_all_of(0, true);
  ASSERT_TRUE(ended && *ended) << ended->error().text();
  EXPECT_EQ(here, numbered(0, 30));
  EXPECT_EQ(servers[1]->held, Contents(numbered(30, 100)));
}

/// A MOVE of one page takes both servers as long as one of hundreds.
TEST_F(DrainTest, WhatFindsNoRoomHereOneByOneGoesElsewhereTogether) {
  make(1, 1);
  for (const PageNumber first : {0, 200, 400}) store(numbered(first, first + 200));
  add_server(1000);
  room_here = most_data_pages - 1;
  drain_all_of(0, true);
  ASSERT_TRUE(ended && *ended) << ended->error().text();
  EXPECT_EQ(here.size(), room_here);
  EXPECT_EQ(servers[1]->held.size(), 600 - room_here);
  EXPECT_LE(moves->asked, 3u);
}

TEST_F(DrainTest, ManyDuplicatesAreNotTheEnd) {
  constexpr PageNumber duplicates = most_runs + 200;
  make(1, 1, 10'000, 10'000);
  for (PageNumber first = 0; first < duplicates; first += 100) {
    store(numbered(first, first + 100));
    fetch(pages_of(numbered(first, first + 100)));
  }
  store(numbered(duplicates, duplicates + 10));
  room_here = 100;
  drain_all_of(0, true);
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ(here, numbered(duplicates, duplicates + 10));
  EXPECT_TRUE(servers[0]->held.empty());
}

TEST_F(DrainTest, WithoutRoomAnywhereItStaysAndSaysHowMuchIsMissing) {
  make(2, 1, 100);
  store(numbered(0, 100));
  store(numbered(600, 660));
  room_here = 10;
  drain_all_of(0);
  ASSERT_TRUE(ended && !*ended);
  EXPECT_EQ(ended->error().code, Errc::no_space);
  EXPECT_NE(ended->error().message.find("50 pages (1 MiB) found no room"), std::string::npos) << ended->error().message;
  EXPECT_EQ(servers[0]->data_pages(), 50u);
  store(numbered(1000, 1040));  // it is a server like another again
  for (const PageNumber page : {0, 99, 600, 1039}) ASSERT_EQ(fetch({page}), numbered(page, page + 1));
}

TEST_F(DrainTest, NobodyElseLiesOnTheOtherSideOfARefusedMove) {
  make(2, 1);
  store(numbered(0, 10));
  moves->refused = Error{Errc::unavailable, "no way from here to there"};
  drain_all_of(0);
  ASSERT_TRUE(ended && !*ended);
  EXPECT_NE(ended->error().message.find("no way from here to there"), std::string::npos) << ended->error().message;
  EXPECT_EQ(servers[0]->held, numbered(0, 10));
  EXPECT_TRUE(servers[1]->held.empty());
}

TEST_F(DrainTest, WhatAnEarlierMoveLeftThereIsNotTakenForThePage) {
  make(2, 1);
  store(numbered(0, 10));
  servers[1]->held[5] = 55;
  drain_all_of(0);
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ(fetch({5}), numbered(5, 6));
  EXPECT_EQ(remote->counts().wrong_contents, 0u);
}

TEST_F(DrainTest, ItsDeathEndsItToo) {
  make(3, 2);
  store(numbered(0, 100));
  start(0);
  servers[0]->die([&] { remote->server_died(0); });
  settle();
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ(remote->pages_without_redundancy(), 0u);
  EXPECT_EQ(fetch({50}), numbered(50, 51));
}

TEST_F(DrainTest, TheTargetsDeathSendsItsPagesElsewhere) {
  make(3, 1);
  store(numbered(0, 100));
  start(0);
  servers[0]->step(false), servers[1]->step(true), servers[1]->step(true);
  servers[1]->die([&] { remote->server_died(1); });
  settle();
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ(servers[2]->held, numbered(0, 100));
}

TEST_F(DrainTest, CalledOffTheServerIsAsBefore) {
  make(2, 1);
  store(numbered(0, 100));
  start(0);
  drain->cancel();
  settle();
  EXPECT_TRUE(drain->at_rest());
  EXPECT_FALSE(ended);
  store({{200, 1}});
  EXPECT_TRUE(servers[0]->held.contains(200));
  EXPECT_EQ(remote->pages_at(0) + remote->pages_at(1), 101u);
  EXPECT_EQ(servers[0]->data_pages() + servers[1]->data_pages(), 101u);
}

TEST_F(DrainTest, ThereAreAtMostSixteenAndPlacesOfTheDeadAreUsedAgain) {
  make(16, 1);
  FakeServer one_more("more", 10);
  EXPECT_EQ(remote->add_server(&one_more).error().code, Errc::no_space);
  store(numbered(0, 10));
  servers[4]->die([&] { remote->server_died(4); });
  EXPECT_EQ(remote->add_server(&one_more).value(), 4u);
}

// ---- everything at once ----------------------------------------------------------------------------------------------

class ChangingHosts : public CopiesHosts {
 public:
  explicit ChangingHosts(const Shape& shape) : CopiesHosts(shape) {
    for (const auto& server : servers) by_number_.push_back(server.get());
    moves_ = std::make_unique<Moves>(*copies, by_number_);
    copies->on_settled([this] {
      for (std::size_t i = 0; i < drains_.size(); ++i) drains_[i].drain->go_on();
    });
  }
  void kill(std::size_t host) override {
    FakeServer* server = servers[host].get();
    if (!server->alive()) return;
    ++deaths;
    const auto at = std::ranges::find(by_number_, server);
    server->die([&] {
      if (at != by_number_.end()) copies->server_died(static_cast<std::size_t>(at - by_number_.begin()));
    });
  }
  void check_at_rest() override {
    EXPECT_FALSE(copies->rebuilding());
    for (std::size_t i = 0; i < by_number_.size(); ++i)
      EXPECT_TRUE(!by_number_[i]->alive() || copies->pages_at(i) == by_number_[i]->data_pages()) << "they differ about server " << i;
    for (const Leaving& one : drains_) EXPECT_TRUE(one.called_off || one.ended) << "it never ended";
  }
  bool can_lose_another() const override {
    return shape_.copies == 2 && staying().size() >= 2 && shape_.quota >= Simulation::pages && deaths <= 1;
  }
  bool may_be_lost(PageNumber page, std::uint64_t content) const override {
    if (deaths > 0 && shape_.copies == 1) return true;  // also what was copied by a move that nobody finished
    return std::ranges::none_of(servers, [&](const auto& server) {
      const auto found = server->held.find(page);
      return server->alive() && found != server->held.end() && found->second == content;
    });
  }
  bool step(unsigned random) override { return moves_->step(random); }
  /// One more, one fewer, or one stays after all.
  void change(unsigned random) override {
    ++changes;
    std::erase_if(drains_, [](const Leaving& one) { return one.drain->at_rest(); });
    const auto stay = staying();
    if (random % 3 == 0 && !drains_.empty() && !drains_[0].ended) {
      drains_[0].called_off = true;
      return drains_[0].drain->cancel();
    }
    if (stay.size() < 6 && (random % 2 == 0 || stay.size() <= shape_.copies)) {
      const auto number = copies->add_server(new_server());
      if (!number) return;
      if (*number == by_number_.size()) by_number_.push_back(nullptr);
      by_number_[*number] = servers.back().get();
    } else if (stay.size() > shape_.copies) {
      const std::size_t number = stay[random / 7 % stay.size()];
      kept_.erase(number);
      const auto done = [this, number](const Status& status) { ended(number, status); };
      auto drain = std::make_unique<Drain>(*copies, number, moves_->ways(bring, random % 5 == 0), done);
      drains_.push_back({number, std::move(drain)});
      drains_.back().drain->go_on();
    }
  }

  unsigned deaths = 0, changes = 0, emptied = 0, failed = 0;

 private:
  struct Leaving {
    std::size_t number;
    std::unique_ptr<Drain> drain;
    bool ended = false, called_off = false;
  };
  std::vector<std::size_t> staying() const {
    std::vector<std::size_t> numbers;
    for (std::size_t i = 0; i < by_number_.size(); ++i)
      if (by_number_[i]->alive() && std::ranges::none_of(drains_, [&](const Leaving& one) { return one.number == i && !one.called_off && !(one.ended && kept_.contains(i)); }))
        numbers.push_back(i);
    return numbers;
  }
  void ended(std::size_t number, const Status& status) {
    for (Leaving& one : drains_)
      if (one.number == number && !one.called_off) one.ended = true;
    if (!status) {
      ++failed;
      kept_.insert(number);
      return;
    }
    ++emptied;
    FakeServer* server = by_number_[number];
    if (!server->alive()) return;
    EXPECT_EQ(copies->pages_at(number), 0u);
    server->end([server] { server->die([] {}); });
  }

  std::vector<FakeServer*> by_number_;
  std::unique_ptr<Moves> moves_;
  std::vector<Leaving> drains_;
  std::set<std::size_t> kept_;
};

Simulation simulate(const Simulation::Plan& plan, const CopiesHosts::Shape& shape) { return {plan, std::make_unique<ChangingHosts>(shape)}; }
ChangingHosts& hosts_of(Simulation& simulation) { return static_cast<ChangingHosts&>(simulation.hosts()); }

class DrainSimulationTest : public ::testing::Test {};

TEST_F(DrainSimulationTest, ServersComeAndGoAndNothingIsLost) {
  unsigned emptied = 0;
  for (unsigned seed = 0; seed < 80; ++seed) {
    Simulation simulation = simulate({.seed = seed, .changes = 8}, {.servers = 2 + seed % 3, .copies = 1 + seed % 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    emptied += hosts_of(simulation).emptied;
    ASSERT_EQ(hosts_of(simulation).failed, 0u) << "seed " << seed;
  }
  EXPECT_GT(emptied, 80u);
}

TEST_F(DrainSimulationTest, WithLittleRoomSomeStayAndNothingIsLost) {
  unsigned emptied = 0, failed = 0;
  for (unsigned seed = 0; seed < 80; ++seed) {
    Simulation simulation = simulate({.seed = seed, .used_pages = 130, .zeros_of_100 = 1, .changes = 8}, {.servers = 3, .copies = 1 + seed % 2, .quota = 40 + seed / 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
    emptied += hosts_of(simulation).emptied;
    failed += hosts_of(simulation).failed;
  }
  EXPECT_GT(emptied, 40u);
  EXPECT_GT(failed, 3u);
}

TEST_F(DrainSimulationTest, OneDeathNeverLosesAReplicatedPage) {
  for (unsigned seed = 0; seed < 80; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 1, .changes = 6}, {.servers = 3 + seed % 2, .copies = 2});
    ASSERT_TRUE(simulation.run()) << "seed " << seed;
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST_F(DrainSimulationTest, WithoutReplicasADeathIsNeverTakenForContent) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    Simulation simulation = simulate({.seed = seed, .deaths = 1, .changes = 6}, {.servers = 3});
    simulation.run();
    simulation.check_at_rest();
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace yado::pager
