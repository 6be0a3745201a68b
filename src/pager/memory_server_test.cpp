#include "pager/memory_server.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <random>

#include "image/temporary_directory.hpp"
#include "pager/peers_testing.hpp"

namespace yado::pager {
namespace {

class MemoryServerTest : public ::testing::Test {
 protected:
  MemoryServerTest() { start({.capacity_pages = 1024, .threads = 2}); }

  void start(MemoryServer::Options options) {
    server.reset();
    server = std::make_unique<MemoryServer>(std::move(options));
    const Status listening = server->listen_unix(path, 0600);
    ASSERT_TRUE(listening) << listening.error().text();
  }
  static Hello hello(std::string session = "vm", std::uint64_t generation = 1) {
    return {.epoch = 1, .generation = generation, .pages = 10'000, .quota_pages = 100, .session = std::move(session)};
  }
  RawPeer connect() const { return RawPeer::connect(path); }
  RawPeer open(const Hello& as) const {
    RawPeer peer = connect();
    const auto answer = peer.ask(Operation::hello, 1, make_hello(as));
    EXPECT_TRUE(answer && answer->header.operation == Operation::welcome);
    return peer;
  }
  Error refusal(const Hello& as) const {
    const auto answer = connect().ask(Operation::hello, 1, make_hello(as));
    return answer ? answer->error() : Error{Errc::internal, "no answer"};
  }
  static std::vector<std::byte> runs(std::vector<PageRun> pages) { return make_batch(with_kind(pages, PageKind::wanted)); }

  image::TemporaryDirectory directory;
  std::string path = directory.path() / "server";
  std::unique_ptr<MemoryServer> server;
};

TEST_F(MemoryServerTest, RequestsSentTogetherAreAnsweredInTheirOrder) {
  const RawPeer peer = connect();
  std::vector<std::byte> all;
  const auto add = [&](Operation operation, std::uint64_t id, Bytes body) {
    const auto frame = make_frame(operation, id, body);
    all.insert(all.end(), frame.begin(), frame.end());
  };
  add(Operation::hello, 1, make_hello(hello()));
  add(Operation::put, 2, put_body({{10, 1}, {11, 0}, {12, 2}}).bytes);
  add(Operation::get, 5, runs({{9, 5}}));
  add(Operation::drop, 6, runs({{11, 2}}));
  add(Operation::list, 7, make_number(0));
  add(Operation::stat, 8, {});
  add(Operation::end, 9, {});
  ASSERT_TRUE(peer.send(all));
  const auto welcome = peer.read();
  ASSERT_TRUE(welcome);
  EXPECT_EQ(parse_welcome(welcome->body)->held_pages, 0u);
  EXPECT_EQ(peer.read()->header.operation, Operation::done);
  const auto pages = peer.read();
  EXPECT_EQ(pages->header.id, 5u);
  EXPECT_EQ(pages->contents(), (Contents{{10, 1}, {11, 0}, {12, 2}}));
  EXPECT_EQ(peer.read()->header.id, 6u);
  const auto listed = parse_batch(peer.read()->body, BatchUse::listing);
  ASSERT_TRUE(listed);
  EXPECT_EQ(listed->runs, (std::vector<KindRun>{{10, 1, PageKind::data}}));
  EXPECT_EQ(parse_stats(peer.read()->body)->data_pages, 1u);
  EXPECT_EQ(peer.read()->header.id, 9u);
  EXPECT_TRUE(server->sessions().empty());
}

TEST_F(MemoryServerTest, TheFirstRequestMustBeHello) {
  const RawPeer peer = connect();
  const auto answer = peer.ask(Operation::stat, 1, {});
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->header.id, 0u);
  EXPECT_EQ(answer->error().code, Errc::corrupt);
  EXPECT_TRUE(peer.ended());
}

TEST_F(MemoryServerTest, WhatIsNoFrameEndsTheConnectionWithAReason) {
  const auto good = make_frame(Operation::get, 2, runs({{1, 1}}));
  struct Damage {
    std::size_t offset;
    unsigned char value;
    Errc code;
  };
  for (const Damage& damage : {Damage{0, 'X', Errc::corrupt}, {4, 9, Errc::unsupported}, {5, 77, Errc::unsupported},
                               {6, 1, Errc::corrupt}, {19, 0x7f, Errc::corrupt}, {20, 1, Errc::corrupt},
                               {24, 0, Errc::corrupt}, {header_bytes + 9, 0x10, Errc::corrupt}}) {
    auto bad = good;
    bad[damage.offset] = static_cast<std::byte>(damage.value);
    const RawPeer peer = open(hello("vm-" + std::to_string(damage.offset)));
    ASSERT_TRUE(peer.send(bad));
    const auto answer = peer.read();
    ASSERT_TRUE(answer) << damage.offset;
    EXPECT_EQ(answer->header.id, 0u);
    EXPECT_EQ(answer->error().code, damage.code) << damage.offset << ": " << answer->error().text();
    EXPECT_TRUE(peer.ended());
    server->end("vm-" + std::to_string(damage.offset));
  }
}

TEST_F(MemoryServerTest, ARepeatedFrameEndsTheConnection) {
  const RawPeer peer = open(hello());
  const auto put = make_frame(Operation::put, 7, put_body({{1, 1}}).bytes);
  ASSERT_TRUE(peer.send(put));
  EXPECT_EQ(peer.read()->header.operation, Operation::done);
  ASSERT_TRUE(peer.send(put));
  const auto answer = peer.read();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->header.id, 0u);
  EXPECT_NE(answer->error().message.find("repeated"), std::string::npos);
  EXPECT_TRUE(peer.ended());
}

TEST_F(MemoryServerTest, ABadBodyIsRefusedAndTheConnectionGoesOn) {
  const RawPeer peer = open(hello());
  std::vector<std::byte> junk(100, std::byte{0x5a});
  std::uint64_t id = 1;
  for (const Operation operation : {Operation::get, Operation::put, Operation::drop, Operation::list, Operation::save,
                                    Operation::load, Operation::move, Operation::hello, Operation::welcome, Operation::done}) {
    const auto answer = peer.ask(operation, ++id, junk);
    ASSERT_TRUE(answer) << name_of(operation);
    EXPECT_EQ(answer->header.id, id);
    EXPECT_EQ(answer->header.operation, Operation::error) << name_of(operation);
  }
  EXPECT_EQ(peer.ask(Operation::put, 100, put_body({{1, 5}}).bytes)->header.operation, Operation::done);
  EXPECT_EQ(peer.ask(Operation::get, 101, runs({{9'999, 2}}))->error().code, Errc::invalid_argument);
  EXPECT_EQ(peer.ask(Operation::get, 102, runs({{1, 1}}))->contents(), (Contents{{1, 5}}));
}

TEST_F(MemoryServerTest, AFrameMayComeByteByByteAndACutOneHarmsNobody) {
  const auto frame = make_frame(Operation::hello, 1, make_hello(hello()));
  const RawPeer slow = connect();
  {
    const RawPeer cut = connect();
    ASSERT_TRUE(cut.send(Bytes(frame).first(frame.size() - 1)));
  }
  for (const std::byte& byte : frame) ASSERT_TRUE(slow.send(Bytes(&byte, 1)));
  EXPECT_EQ(slow.read()->header.operation, Operation::welcome);
  {
    const RawPeer cut = open(hello("vm", 2));
    const auto put = make_frame(Operation::put, 2, put_body({{1, 1}, {2, 2}}).bytes);
    ASSERT_TRUE(cut.send(Bytes(put).first(put.size() - 1)));
  }
  const RawPeer next = open(hello("vm", 3));
  EXPECT_EQ(next.ask(Operation::get, 2, runs({{0, 4}}))->contents(), Contents{}) << "half a PUT is none";
}

TEST_F(MemoryServerTest, ALaterConnectionFencesTheEarlierOne) {
  const RawPeer first = open(hello("vm", 1));
  ASSERT_EQ(first.ask(Operation::put, 2, put_body({{1, 1}}).bytes)->header.operation, Operation::done);
  const RawPeer second = open(hello("vm", 2));
  EXPECT_EQ(first.ask(Operation::put, 3, put_body({{1, 66}}).bytes)->error().code, Errc::stale_epoch);
  EXPECT_EQ(first.ask(Operation::get, 4, runs({{1, 1}}))->error().code, Errc::stale_epoch);
  EXPECT_EQ(second.ask(Operation::get, 2, runs({{1, 1}}))->contents(), (Contents{{1, 1}}));
  EXPECT_EQ(refusal(hello("vm", 2)).code, Errc::stale_epoch);
  Hello old = hello("vm", 99);
  old.epoch = 0;
  EXPECT_EQ(refusal(old).code, Errc::stale_epoch);
}

TEST_F(MemoryServerTest, AnHeirGoesOnWithThePagesAndFencesWhoHadThem) {
  const RawPeer first = open(hello("vm", 1));
  ASSERT_EQ(first.ask(Operation::put, 2, put_body({{1, 1}, {2, 0}}).bytes)->header.operation, Operation::done);
  Hello heir = hello("vm", 1);
  heir.role = Role::heir;
  heir.from = 1;
  EXPECT_EQ(refusal(heir).code, Errc::stale_epoch) << "of the same life";
  heir.epoch = 2;
  Hello other = heir;
  other.pages = 7;
  EXPECT_EQ(refusal(other).code, Errc::conflict);
  EXPECT_EQ(first.ask(Operation::get, 3, runs({{1, 2}}))->contents(), (Contents{{1, 1}, {2, 0}})) << "who was refused changed nothing";
  Hello of_another = heir;
  of_another.from = 7;
  EXPECT_EQ(refusal(of_another).code, Errc::stale_epoch);
  const RawPeer second = open(heir);
  EXPECT_EQ(first.ask(Operation::put, 4, put_body({{1, 66}}).bytes)->error().code, Errc::stale_epoch);
  EXPECT_EQ(first.ask(Operation::end, 5, {})->error().code, Errc::stale_epoch);
  EXPECT_EQ(second.ask(Operation::get, 2, runs({{1, 2}}))->contents(), (Contents{{1, 1}, {2, 0}}));
  EXPECT_EQ(second.ask(Operation::put, 3, put_body({{3, 3}}).bytes)->header.operation, Operation::done);
  Hello again = hello("vm", 2);
  again.epoch = 2;
  EXPECT_EQ(open(again).ask(Operation::get, 2, runs({{1, 3}}))->contents(), (Contents{{1, 1}, {2, 0}, {3, 3}})) << "a later connection of the heir's";
  Hello nothing = heir;
  nothing.session = "another";
  EXPECT_EQ(refusal(nothing).code, Errc::not_found);
}

TEST_F(MemoryServerTest, OfOneOwnerOneInheritsAndItMayRepeatItself) {
  const RawPeer first = open(hello("vm", 1));
  ASSERT_EQ(first.ask(Operation::put, 2, put_body({{1, 1}}).bytes)->header.operation, Operation::done);
  Hello heir = hello("vm", 1);
  heir.role = Role::heir;
  heir.epoch = 3;
  heir.from = 1;
  open(heir);
  Hello later = heir;
  later.epoch = 4;
  EXPECT_EQ(refusal(later).code, Errc::stale_epoch) << "a greater epoch alone does not do: it knows what epoch 1 had, and epoch 3 may have changed it";
  later.from = 3;
  heir.generation = 2;
  EXPECT_EQ(open(heir).ask(Operation::get, 2, runs({{1, 1}}))->contents(), (Contents{{1, 1}})) << "it did not hear that it was welcome";
  open(later);
  heir.generation = 3;
  EXPECT_EQ(refusal(heir).code, Errc::stale_epoch);
}

TEST_F(MemoryServerTest, AReaderSeesWhatTheOwnerItWasToldOfHasAndChangesNothing) {
  Hello of_owner = hello("vm", 1);
  const RawPeer peer = connect();
  const std::uint64_t instance = parse_welcome(peer.ask(Operation::hello, 1, make_hello(of_owner))->body)->instance;
  ASSERT_EQ(peer.ask(Operation::put, 2, put_body({{1, 1}, {2, 0}}).bytes)->header.operation, Operation::done);
  Hello reader = hello("vm", instance);
  reader.role = Role::reader;
  reader.epoch = 2;
  reader.from = 1;
  const RawPeer other = open(reader);
  EXPECT_EQ(other.ask(Operation::get, 2, runs({{1, 2}}))->contents(), (Contents{{1, 1}, {2, 0}}));
  EXPECT_EQ(other.ask(Operation::list, 3, make_number(0))->header.operation, Operation::pages);
  for (const Operation operation : {Operation::put, Operation::drop, Operation::save, Operation::move, Operation::end, Operation::quota})
    EXPECT_EQ(other.ask(operation, 10 + static_cast<std::uint64_t>(operation), put_body({{1, 9}}).bytes)->error().code, Errc::permission) << name_of(operation);
  open(hello("vm", 2));
  EXPECT_EQ(other.ask(Operation::get, 40, runs({{1, 1}}))->contents(), (Contents{{1, 1}})) << "another connection of the same owner's";
  Hello guess = reader;
  guess.generation ^= 1;
  EXPECT_EQ(refusal(guess).code, Errc::permission) << "only the owner knows the session's instance";
  Hello heir = reader;
  heir.role = Role::heir;
  heir.generation = 1;
  open(heir);
  EXPECT_EQ(other.ask(Operation::get, 50, runs({{1, 1}}))->error().code, Errc::stale_epoch) << "from now on it may change";
  EXPECT_EQ(refusal(reader).code, Errc::stale_epoch);
}

TEST_F(MemoryServerTest, TheInstanceStaysOverConnectionsAndChangesWithTheServer) {
  const auto instance = [&](std::uint64_t generation) {
    return parse_welcome(connect().ask(Operation::hello, 1, make_hello(hello("vm", generation)))->body)->instance;
  };
  const std::uint64_t first = instance(1);
  EXPECT_EQ(instance(2), first);
  start({.capacity_pages = 1024});
  EXPECT_NE(instance(3), first);
}

TEST_F(MemoryServerTest, AQuotaIsSetAsideAndGivenBack) {
  Hello big = hello("big");
  big.quota_pages = 1000;
  const RawPeer peer = open(big);
  EXPECT_EQ(refusal(hello("small")).code, Errc::no_space) << "1024 - 1000 < 100";
  EXPECT_EQ(peer.ask(Operation::end, 2, {})->header.operation, Operation::done);
  EXPECT_EQ(peer.ask(Operation::get, 3, runs({{1, 1}}))->error().code, Errc::not_found);
  open(hello("small"));
  EXPECT_EQ(server->sessions().at(0).name, "small");
  EXPECT_TRUE(server->end("small"));
  EXPECT_EQ(server->end("small").error().code, Errc::not_found);
}

TEST_F(MemoryServerTest, AQuotaChangesByItsOwnRequestOnly) {
  const RawPeer small = open(hello("small"));
  RawPeer peer = open(hello("vm"));
  const auto quota = [&](std::uint64_t id, std::uint64_t pages) { return peer.ask(Operation::quota, id, make_number(pages)); };
  EXPECT_EQ(quota(2, 925)->error().code, Errc::no_space) << "1024 - 100 < 925";
  EXPECT_EQ(quota(3, 924)->header.operation, Operation::done);
  EXPECT_EQ(refusal(hello("third")).code, Errc::no_space);
  Contents two{{1, 1}, {2, 2}};
  ASSERT_EQ(peer.ask(Operation::put, 4, put_body(two).bytes)->header.operation, Operation::done);
  EXPECT_EQ(quota(5, 1)->error().code, Errc::no_space) << "two are held";
  EXPECT_EQ(quota(6, 2)->header.operation, Operation::done);
  EXPECT_EQ(peer.ask(Operation::put, 7, put_body({{3, 3}}).bytes)->error().code, Errc::no_space);
  open(hello("third"));
  // Connected anew, as before that was answered: it stays as it is.
  peer = open(hello("vm", 2));
  EXPECT_EQ(peer.ask(Operation::put, 2, put_body({{3, 3}}).bytes)->error().code, Errc::no_space);
}

TEST_F(MemoryServerTest, AnEndedSessionsMemoryIsFreeWhileItsConnectionStaysOpen) {
  start({.capacity_pages = 100});
  Contents all;
  for (PageNumber page = 0; page < 100; ++page) all[page] = page + 1;
  const RawPeer first = open(hello("first"));
  ASSERT_EQ(first.ask(Operation::put, 2, put_body(all).bytes)->header.operation, Operation::done);
  ASSERT_TRUE(server->end("first"));
  const RawPeer second = open(hello("second"));
  EXPECT_EQ(second.ask(Operation::put, 2, put_body(all).bytes)->header.operation, Operation::done);
  EXPECT_EQ(first.ask(Operation::get, 3, runs({{1, 1}}))->error().code, Errc::not_found);
}

TEST_F(MemoryServerTest, WhoIsNoOwnerMayOnlyLook) {
  const RawPeer owner = open(hello());
  ASSERT_EQ(owner.ask(Operation::put, 2, put_body({{1, 1}, {2, 0}}).bytes)->header.operation, Operation::done);
  Hello looker = hello();
  looker.role = Role::looker;
  const RawPeer other = open(looker);
  EXPECT_EQ(parse_stats(other.ask(Operation::stat, 2, {})->body)->zero_pages, 1u);
  EXPECT_EQ(parse_batch(other.ask(Operation::list, 3, make_number(0))->body, BatchUse::listing)->runs.size(), 2u);
  EXPECT_EQ(other.ask(Operation::get, 4, runs({{1, 1}}))->error().code, Errc::permission);
  EXPECT_EQ(other.ask(Operation::end, 5, {})->error().code, Errc::permission);
  looker.session = "nobody";
  EXPECT_EQ(refusal(looker).code, Errc::not_found);
}

TEST_F(MemoryServerTest, BadSessionsAreRefused) {
  EXPECT_EQ(refusal(hello("../etc")).code, Errc::invalid_argument);
  EXPECT_EQ(refusal(hello("")).code, Errc::invalid_argument);
  Hello vast = hello();
  vast.pages = most_pages + 1;
  EXPECT_EQ(refusal(vast).code, Errc::corrupt);
  start({.capacity_pages = 10, .admits = [](std::string_view peer) { return peer != "local"; }});
  EXPECT_EQ(refusal(hello()).code, Errc::permission);
}

TEST_F(MemoryServerTest, WhoDoesNotReadIsNotReadFromAndOthersAreServed) {
  const RawPeer lazy = open(hello("lazy"));
  Contents all;
  for (PageNumber page = 0; page < 100; ++page) all[page] = page + 1;
  ASSERT_EQ(lazy.ask(Operation::put, 2, put_body(all).bytes)->header.operation, Operation::done);
  constexpr std::uint64_t requests = 2000;  // 800 MB of answers
  std::jthread asker([&] {
    for (std::uint64_t id = 3; id < 3 + requests; ++id) ASSERT_TRUE(lazy.send(Operation::get, id, runs({{0, 100}})));
  });
  const RawPeer busy = open(hello("busy"));
  for (std::uint64_t id = 2; id < 100; ++id)
    ASSERT_EQ(busy.ask(Operation::put, id, put_body({{id, id}}).bytes)->header.operation, Operation::done);
  for (const MemoryServer::Session& session : server->sessions())
    EXPECT_TRUE(session.name != "lazy" || session.stats.gets < 100u) << "answers pile up";
  for (std::uint64_t id = 3; id < 3 + requests; ++id) {
    const auto answer = lazy.read();
    ASSERT_TRUE(answer);
    ASSERT_EQ(answer->header.id, id);
  }
}

TEST_F(MemoryServerTest, ManyPeersAtOnce) {
  std::vector<std::jthread> threads;
  for (int number = 0; number < 4; ++number)
    threads.emplace_back([&, number] {
      Hello as = hello("vm-" + std::to_string(number));
      std::mt19937 random(static_cast<unsigned>(number));
      Contents model;
      for (int connection = 0; connection < 5; ++connection, ++as.generation) {
        const RawPeer peer = open(as);
        for (std::uint64_t id = 2; id < 60; ++id) {
          Contents some;
          for (int i = 0; i < 5; ++i) some[random() % 80] = random() % 9;
          for (const auto& [page, content] : some) model[page] = content;
          ASSERT_EQ(peer.ask(Operation::put, 2 * id, put_body(some).bytes)->header.operation, Operation::done);
          ASSERT_EQ(peer.ask(Operation::get, 2 * id + 1, runs({{0, 80}}))->contents(), model);
        }
      }
    });
  while (server->sessions().size() < 4) std::this_thread::yield();
}

TEST_F(MemoryServerTest, ItEndsWithConnectionsOpen) {
  const RawPeer open_one = open(hello());
  const RawPeer silent = connect();
  const RawPeer half = connect();
  ASSERT_TRUE(half.send(std::vector<std::byte>(10, std::byte{0x59})));
  server.reset();
  EXPECT_TRUE(open_one.ended());
  EXPECT_TRUE(silent.ended());
}

TEST_F(MemoryServerTest, ATlsPortWantsTls) {
  auto authority = wire::Authority::open_or_create(directory.path() / "ca");
  ASSERT_TRUE(authority);
  const auto port = server->listen_tls("127.0.0.1", 0, *authority->issue("agent:h1"));
  ASSERT_TRUE(port) << port.error().text();
  os::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(*port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  const RawPeer plain(std::move(fd));
  ASSERT_TRUE(plain.send(Operation::hello, 1, make_hello(hello())));
  std::byte answer[64];
  std::size_t bytes = 0;
  for (ssize_t got = 1; got > 0 && bytes < sizeof answer; bytes += static_cast<std::size_t>(got))
    got = ::recv(plain.fd(), answer, sizeof answer, 0);
  EXPECT_LT(bytes, header_bytes) << "an alert at most, never a frame";
  EXPECT_TRUE(server->sessions().empty());
}

}  // namespace
}  // namespace yado::pager
