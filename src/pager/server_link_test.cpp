#include "pager/server_link.hpp"

#include <random>

#include "pager/link_testing.hpp"
#include "pager/memory_server.hpp"
#include "pager/peers_testing.hpp"
#include "wire/run.hpp"

namespace yado::pager {
namespace {

class ServerLinkTest : public LinkFixture {
 protected:
  void start_server() {
    server.reset();
    server = std::make_unique<MemoryServer>(MemoryServer::Options{.capacity_pages = 1024});
    const Status listening = server->listen_unix(path("server"), 0600);
    ASSERT_TRUE(listening) << listening.error().text();
  }
  static Hello hello() { return {.epoch = 1, .pages = 10'000, .quota_pages = 512, .session = "vm"}; }

  std::shared_ptr<ServerLink> make(const ServerAddress& address, nanoseconds patience = 20s,
                                   const wire::Identity* identity = nullptr) {
    auto link = ServerLink::make(io.get_executor(), blocks, address, {hello(), patience, identity});
    EXPECT_TRUE(link) << link.error().text();
    links.push_back(*link);
    (*link)->on_dead([this](const Error& why) { deaths.push_back(why); });
    return *link;
  }
  std::shared_ptr<ServerLink> open(std::string_view name, nanoseconds patience = 20s) {
    auto link = make({.unix_path = path(name)}, patience);
    const auto welcome = wire::run(io, ServerLink::open(link));
    EXPECT_TRUE(welcome) << welcome.error().text();
    return link;
  }

  Status drop(ServerLink& link, std::vector<PageRun> runs) {
    return answer_of<void>([&](auto done) { link.drop(runs, done); });
  }
  void until_dead(const ServerLink& link) {
    io.restart();
    while (link.alive() && io.run_one() > 0) {}
  }

  std::unique_ptr<MemoryServer> server;
  std::vector<Error> deaths;
};

TEST_F(ServerLinkTest, PagesGoAndComeBack) {
  start_server();
  const auto link = open("server");
  ASSERT_TRUE(put(*link, {{1, 10}, {2, 0}, {3, 30}, {900, 9}}));
  EXPECT_EQ(get(*link, {{0, 4}, {900, 1}}).value(), (Contents{{1, 10}, {2, 0}, {3, 30}, {900, 9}}));
  ASSERT_TRUE(drop(*link, {{1, 2}}));
  EXPECT_EQ(get(*link, {{0, 4}}).value(), (Contents{{3, 30}}));
  EXPECT_EQ(put(*link, {{10'000, 1}}).error().code, Errc::invalid_argument) << "refused, and the link goes on";
  EXPECT_EQ(get(*link, {{3, 1}}).value(), (Contents{{3, 30}}));
  EXPECT_EQ(link->traffic().reconnections, 0u);
}

TEST_F(ServerLinkTest, OverTlsBothSidesAreWhoTheySay) {
  start_server();
  auto authority = wire::Authority::open_or_create(directory.path() / "ca");
  auto strangers = wire::Authority::open_or_create(directory.path() / "strangers");
  ASSERT_TRUE(authority && strangers);
  const auto port = server->listen_tls("127.0.0.1", 0, *authority->issue("agent:h2"));
  ASSERT_TRUE(port) << port.error().text();
  const wire::Identity own = *authority->issue("agent:h1");
  const wire::Identity strange = *strangers->issue("agent:h1");
  const ServerAddress address{.address = "127.0.0.1", .port = *port, .expected_peer = "agent:h2"};
  const auto link = make(address, 20s, &own);
  ASSERT_TRUE(wire::run(io, ServerLink::open(link)));
  ASSERT_TRUE(put(*link, {{1, 10}, {2, 0}, {3, 30}}));
  EXPECT_EQ(get(*link, {{1, 3}}).value(), (Contents{{1, 10}, {2, 0}, {3, 30}}));
  EXPECT_EQ(server->sessions().at(0).owner, "agent:h1");

  ServerAddress another = address;
  another.expected_peer = "agent:h3";
  EXPECT_EQ(wire::run(io, ServerLink::open(make(another, 20s, &own))).error().code, Errc::permission);
  const auto refused = wire::run(io, ServerLink::open(make(address, 20s, &strange)));
  EXPECT_FALSE(refused);
  const wire::Identity thief = *authority->issue("agent:h9");
  EXPECT_EQ(wire::run(io, ServerLink::open(make(address, 20s, &thief))).error().code, Errc::permission) << "another's session";
  Hello later = hello();
  later.epoch = 2;
  const auto next = ServerLink::make(io.get_executor(), blocks, address, {later, 20s, &thief});
  ASSERT_TRUE(next);
  links.push_back(*next);
  ASSERT_TRUE(wire::run(io, ServerLink::open(*next))) << "it was granted the next epoch";
  EXPECT_EQ(wire::run(io, ServerLink::open(make(address, 20s, &own))).error().code, Errc::stale_epoch) << "a later grant would have it";
  EXPECT_EQ(ServerLink::make(io.get_executor(), blocks, {.address = "192.0.2.1", .port = 1}, {hello()}).error().code,
            Errc::invalid_argument)
      << "no plain connection off this host";
}

TEST_F(ServerLinkTest, WhatWasNotAnsweredIsRepeatedOnANewConnection) {
  std::vector<std::uint64_t> generations, ids;
  RawServer raw(path("raw"), [&](RawPeer& peer, int number) {
    const auto first = peer.read();
    if (!first) return;
    generations.push_back(parse_hello(first->body)->generation);
    peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    const auto put = peer.read();
    if (!put) return;
    ids.push_back(put->header.id);
    if (number == 1) return;  // cut off before the answer
    peer.send(Operation::done, put->header.id, {});
    peer.read();
  });
  const auto link = open("raw");
  EXPECT_TRUE(put(*link, {{1, 1}}));
  link->close();
  while (raw.connections < 2) std::this_thread::yield();
  EXPECT_EQ(generations.size(), 2u);
  EXPECT_LT(generations[0], generations[1]);
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_EQ(link->traffic().reconnections, 1u);
  EXPECT_TRUE(deaths.empty());
}

TEST_F(ServerLinkTest, CutsAndDamageAtRandomPlacesLoseNothing) {
  for (unsigned seed = 0; seed < 6; ++seed) {
    start_server();
    std::mt19937 random(seed);
    std::int64_t left = 20'000;
    std::atomic<int> harms = 0;
    const bool cut = seed % 2 == 0;
    Proxy proxy(path("proxy"), path("server"), [&](std::span<std::byte> bytes) {
      left -= static_cast<std::int64_t>(bytes.size());
      if (left > 0) return true;
      left = 200'000 + static_cast<std::int64_t>(random() % 2'000'000);
      ++harms;
      if (cut) return false;
      bytes[random() % bytes.size()] ^= std::byte{4};
      return true;
    });
    const auto link = open("proxy");
    Contents model;
    int under_way = 0, wrong = 0;
    std::mt19937 choice(seed + 1000);
    for (std::uint64_t step = 1; step <= 400; ++step) {
      Contents some;
      for (int i = 0; i < 12; ++i) {
        const PageNumber page = choice() % 400;
        model[page] = some[page] = page % 7 == 0 ? 0 : step;
      }
      ++under_way;
      link->put(put_batch(some), [&](const Status& status) { --under_way, wrong += !status; });
      const auto first = static_cast<PageNumber>(choice() % 380);
      const Contents before(model.lower_bound(first), model.lower_bound(first + 20));
      ++under_way;
      link->get({{first, 20}}, [&, before](const auto& answer) {
        --under_way;
        if (!answer) return void(++wrong);
        // A repeated GET may see what was put behind it, but nothing older than what was put before it.
        const Contents seen = contents_of(answer->first.runs, answer->first.data);
        for (const auto& [page, number] : before) wrong += !seen.contains(page) || seen.at(page) < number;
        for (const auto& [page, number] : seen) wrong += number > model[page];
      });
      io.restart();
      while (under_way > 6 && io.run_one() > 0) {}
    }
    io.restart();
    while (under_way > 0 && io.run_one() > 0) {}
    EXPECT_EQ(wrong, 0) << "seed " << seed;
    EXPECT_GT(harms, 3) << "the test did nothing";
    EXPECT_GT(link->traffic().reconnections, 3u);
    EXPECT_TRUE(deaths.empty()) << deaths[0].text();
    link->close();
    io.restart();
    io.poll();
  }
}

TEST_F(ServerLinkTest, ADeadServerIsKnownByARefusedConnection) {
  start_server();
  const auto link = open("server");
  ASSERT_TRUE(put(*link, {{1, 1}}));
  server.reset();
  const auto answer = get(*link, {{1, 1}});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Errc::refused);
  ASSERT_EQ(deaths.size(), 1u) << "told before its requests were answered";
  EXPECT_FALSE(link->alive());
  EXPECT_FALSE(get(*link, {{1, 1}})) << "and new ones get errors, later";
}

TEST_F(ServerLinkTest, AnIdleLinkNoticesADeathToo) {
  start_server();
  const auto link = open("server");
  server.reset();
  until_dead(*link);
  ASSERT_EQ(deaths.size(), 1u);
  EXPECT_EQ(deaths[0].code, Errc::refused);
}

TEST_F(ServerLinkTest, AServerStartedAnewHasNoPages) {
  start_server();
  const auto link = open("server");
  ASSERT_TRUE(put(*link, {{1, 1}}));
  // The new one listens before the old one's end is seen.
  std::filesystem::rename(path("server"), path("old"));
  auto next = std::make_unique<MemoryServer>(MemoryServer::Options{.capacity_pages = 1024});
  ASSERT_TRUE(next->listen_unix(path("server"), 0600));
  server = std::move(next);
  until_dead(*link);
  ASSERT_EQ(deaths.size(), 1u);
  EXPECT_EQ(deaths[0].code, Errc::not_owner);
  EXPECT_NE(deaths[0].message.find("started anew"), std::string::npos);
}

TEST_F(ServerLinkTest, ASilentServerIsDeadAfterPatience) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    while (peer.read()) {}
  });
  const auto link = open("raw", 50ms);
  const Status answer = put(*link, {{1, 1}});
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, Errc::timed_out);
  EXPECT_EQ(deaths.size(), 1u);
}

TEST(AnswerTimesTest, SilenceMeansSomethingAfterMoreThanAnAnswerTakes) {
  AnswerTimes times;
  EXPECT_EQ(times.suspicious(), 1s);
  for (int i = 0; i < 20; ++i) times.add(2s);
  EXPECT_GE(times.suspicious(), 2s);
  EXPECT_LT(times.suspicious(), 3s);
  times.add(6s);
  EXPECT_GT(times.suspicious(), 6s) << "it may happen again";
  for (int i = 0; i < 50; ++i) times.add(1ms);
  EXPECT_EQ(times.suspicious(), 1s);
}

TEST_F(ServerLinkTest, ASilentServerMayBeGivenUpBeforeThePatienceEnds) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    while (peer.read()) {}
  });
  const auto link = open("raw", 1h);
  int told = 0;
  link->on_silent([&] {
    EXPECT_TRUE(link->silent());
    if (++told == 2) link->give_up({Errc::timed_out, "it is done without"});
  });
  EXPECT_FALSE(link->silent()) << "nothing is waited for";
  const Status answer = put(*link, {{1, 1}});
  EXPECT_EQ(answer.error().code, Errc::timed_out);
  EXPECT_EQ(told, 2);
  EXPECT_EQ(deaths.size(), 1u);
  link->give_up({Errc::timed_out, "again"});
  EXPECT_EQ(deaths.size(), 1u);
}

TEST_F(ServerLinkTest, OneThatIsBeingConnectedAgainMayBeGivenUpToo) {
  RawServer raw(path("raw"), [&](RawPeer& peer, int number) {
    if (peer.read() && number == 1) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    peer.read();  // the second time nobody is welcome
  });
  const auto link = open("raw", 1h);
  link->on_silent([&] { link->give_up({Errc::timed_out, "it is done without"}); });
  EXPECT_FALSE(put(*link, {{1, 1}}));
  EXPECT_FALSE(link->alive());
  EXPECT_EQ(deaths.size(), 1u);
}

TEST_F(ServerLinkTest, ASlowServerIsNotTakenForDead) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    while (const auto request = peer.read()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      peer.send(Operation::done, request->header.id, {});
    }
  });
  const auto link = open("raw", 1s);
  int answered = 0;
  for (PageNumber page = 0; page < 15; ++page)
    link->put(put_batch({{page, 1}}), [&](const Status& status) { answered += status.has_value(); });
  io.restart();
  while (answered < 15 && link->alive() && io.run_one() > 0) {}
  EXPECT_EQ(answered, 15) << "each waits for longer than the patience, but answers come";
  EXPECT_EQ(link->traffic().reconnections, 0u);
}

struct Liar {
  const char* name;
  std::function<std::vector<std::byte>(const Header& request, const Header& next)> answer;
};

class LyingServerTest : public ServerLinkTest, public ::testing::WithParamInterface<Liar> {};

TEST_P(LyingServerTest, IsTriedAgainAFewTimesThenDead) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    const auto first = peer.read(), second = peer.read();
    if (!first || !second) return;
    peer.send(GetParam().answer(first->header, second->header));
    peer.read();
  });
  const auto link = open("raw");
  int good = 0;
  // Whoever uses a link asks again where an answer was of no use.
  std::function<void(const Status&)> put_again = [&](const Status& status) {
    good += status.has_value();
    if (link->alive()) link->put(put_batch({{5, 1}}), put_again);
  };
  std::function<void(Result<std::pair<Batch, Frame>>)> get_again = [&](const auto& answer) {
    good += answer.has_value();
    if (link->alive()) link->get({{1, 2}}, get_again);
  };
  link->get({{1, 2}}, get_again);
  link->put(put_batch({{5, 1}}), put_again);
  until_dead(*link);
  EXPECT_EQ(good, 0);
  ASSERT_EQ(deaths.size(), 1u);
  EXPECT_TRUE(deaths[0].code == Errc::corrupt || deaths[0].code == Errc::unsupported) << deaths[0].text();
  EXPECT_LE(raw.connections, 7);
}

INSTANTIATE_TEST_SUITE_P(
    All, LyingServerTest,
    ::testing::Values(
        Liar{"OtherPages", [](const Header& request, const Header&) {
               return make_frame(Operation::pages, request.id, make_batch(std::vector<KindRun>{{1, 1, PageKind::zero}, {3, 1, PageKind::zero}}));
             }},
        Liar{"FewerPages", [](const Header& request, const Header&) {
               return make_frame(Operation::pages, request.id, make_batch(std::vector<KindRun>{{1, 1, PageKind::zero}}));
             }},
        Liar{"HalfABatch", [](const Header& request, const Header&) {
               return make_frame(Operation::pages, request.id, make_batch(std::vector<KindRun>{{1, 2, PageKind::data}}));
             }},
        Liar{"AnotherOperation", [](const Header& request, const Header&) { return make_frame(Operation::stats, request.id, make_stats({})); }},
        Liar{"NobodyAsked", [](const Header& request, const Header&) { return make_frame(Operation::done, request.id + 1000, {}); }},
        Liar{"OutOfOrder", [](const Header&, const Header& next) { return make_frame(Operation::done, next.id, {}); }},
        Liar{"Corrupted", [](const Header& request, const Header&) {
               auto frame = make_frame(Operation::done, request.id, {});
               frame[25] ^= std::byte{1};
               return frame;
             }},
        Liar{"Oversized", [](const Header& request, const Header&) {
               auto frame = make_frame(Operation::pages, request.id, {});
               frame[19] = std::byte{0x7f};
               return frame;
             }},
        Liar{"AnotherVersion", [](const Header& request, const Header&) {
               auto frame = make_frame(Operation::done, request.id, {});
               frame[4] = std::byte{9};
               return frame;
             }}),
    [](const auto& liar) { return liar.param.name; });

TEST_F(ServerLinkTest, OneThatRefusesUsAtTheDoorIsNotWaitedFor) {
  for (const Errc code : {Errc::permission, Errc::no_space, Errc::conflict, Errc::stale_epoch}) {
    RawServer raw(path("raw"), [code](RawPeer& peer, int) {
      if (peer.read()) peer.send(Operation::error, 1, make_error({code, "not you"}));
    });
    EXPECT_EQ(wire::run(io, ServerLink::open(make({.unix_path = path("raw")}))).error().code, code);
  }
}

TEST_F(ServerLinkTest, WelcomeAndBreakOffForEverEndsAfterPatience) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
  });
  const auto link = open("raw", 100ms);
  EXPECT_FALSE(put(*link, {{1, 1}}));
  EXPECT_FALSE(link->alive());
}

TEST_F(ServerLinkTest, ClosingCancelsWhatIsUnderWay) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    while (peer.read()) {}
  });
  const auto link = open("raw");
  Errc code{};
  link->put(put_batch({{1, 1}}), [&](const Status& status) { code = status.error().code; });
  link->close();
  EXPECT_EQ(code, Errc::canceled);
  EXPECT_TRUE(deaths.empty());
  io.restart();
  io.poll();
}

TEST_F(ServerLinkTest, AnIoContextMayEndWithLinksOpen) {
  start_server();
  auto own = std::make_unique<boost::asio::io_context>();
  auto link = ServerLink::make(own->get_executor(), blocks, {.unix_path = path("server")}, {hello()});
  ASSERT_TRUE(link);
  ASSERT_TRUE(wire::run(*own, ServerLink::open(*link)));
  (*link)->get({{1, 1}}, [](const auto&) {});
  link->reset();
  own.reset();
}

}  // namespace
}  // namespace yado::pager
