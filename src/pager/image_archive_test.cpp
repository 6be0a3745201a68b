// SAVE, LOAD and MOVE as a pager asks for them: memory servers, links, files.

#include <thread>

#include "image/page_testing.hpp"
#include "os/clock.hpp"
#include "pager/image_archive.hpp"
#include "pager/link_testing.hpp"
#include "pager/memory_server.hpp"
#include "pager/peers_testing.hpp"
#include "pager/save_pace.hpp"
#include "wire/run.hpp"

namespace yado::pager {
namespace {

constexpr std::uint64_t guest_pages = 20'000;

class ImageArchiveTest : public LinkFixture {
 protected:
  std::unique_ptr<MemoryServer> start(const std::string& host, bool with_archive = true, std::uint64_t capacity_pages = 3 * guest_pages) const {
    auto server = std::make_unique<MemoryServer>(MemoryServer::Options{
        .capacity_pages = capacity_pages, .archive = with_archive ? std::make_shared<DirectoryArchive>(path("images"), host) : nullptr});
    const Status listening = server->listen_unix(path(host), 0600);
    EXPECT_TRUE(listening) << listening.error().text();
    return server;
  }
  std::shared_ptr<ServerLink> open(const ServerAddress& address, nanoseconds patience = 20s, std::uint64_t epoch = 1,
                                   const wire::Identity* identity = nullptr, const std::string& session = "vm", std::uint64_t quota_pages = guest_pages) {
    const Hello hello{.epoch = epoch, .pages = guest_pages, .quota_pages = quota_pages, .session = session};
    auto link = ServerLink::make(io.get_executor(), blocks, address, {hello, patience, identity});
    EXPECT_TRUE(link);
    const auto welcome = wire::run(io, ServerLink::open(*link));
    EXPECT_TRUE(welcome) << welcome.error().text();
    links.push_back(*link);
    return *link;
  }
  std::shared_ptr<ServerLink> open(const std::string& host) { return open(ServerAddress{.unix_path = path(host)}); }

  void put(ServerLink& link, const Contents& contents) {
    const Status done = LinkFixture::put(link, contents);
    EXPECT_TRUE(done) << done.error().text();
  }
  Status save(ServerLink& link, const std::string& name, image::CutId cut, image::CutId base, const std::vector<PageRun>& owned) {
    YADO_TRY(answer_of<Saved>([&](auto told) { link.save({name, cut, base}, told); }), "save");
    YADO_TRY(answer_of<void>([&](auto told) { link.fix(name, told); }), "fix");
    YADO_TRY(answer_of<Saved>([&](auto told) { link.finish(name, owned, told); }), "finish");
    return answer_of<void>([&](auto told) { link.keep(name, told); });
  }
  SessionStats stats(ServerLink& link) {
    return answer_of<SessionStats>([&](auto told) { link.stat(told); }).value();
  }
};

TEST_F(ImageArchiveTest, TwoServersSaveTogetherAndOneLoadsIt) {
  auto one = start("h1"), two = start("h2");
  const auto to_one = open("h1"), to_two = open("h2");
  // Every other page, in more runs than one message has room for.
  std::vector<PageRun> even, odd;
  Contents all;
  for (PageNumber page = 0; page < guest_pages; ++page) {
    (page % 2 == 0 ? even : odd).push_back({page, 1});
    all[page] = page % 5 == 0 ? page + 1 : 0;
  }
  for (const auto& [link, remainder] : {std::pair(to_one, 0u), std::pair(to_two, 1u)})
    for (PageNumber first = 0; first < guest_pages; first += 500) {
      Contents some;
      for (PageNumber page = first + remainder; page < first + 500; page += 2) some[page] = all[page];
      put(*link, some);
    }
  const image::CutId cut = image::cut_number(1);
  for (const auto& [link, owned] : {std::pair(to_one, even), std::pair(to_two, odd)}) {
    const Status saved = save(*link, "image-1", cut, {}, owned);
    ASSERT_TRUE(saved) << saved.error().text();
    EXPECT_EQ(stats(*link).changed_pages, 0u);
  }
  one.reset();
  two.reset();

  auto three = start("h3");
  const auto to_three = open("h3");
  const auto loaded = answer_of<std::uint64_t>([&](auto told) { to_three->load({"image-1"}, even, told); });
  ASSERT_TRUE(loaded) << loaded.error().text();
  EXPECT_EQ(*loaded, even.size()) << "all messages together";
  for (PageNumber first = 0; first < guest_pages; first += 200) {
    std::vector<PageRun> runs;
    Contents expected;
    for (PageNumber page = first; page < first + 200; page += 2) runs.push_back({page, 1}), expected[page] = all[page];
    const auto got = get(*to_three, runs);
    ASSERT_TRUE(got) << got.error().text();
    ASSERT_EQ(*got, expected);
  }
  while (stats(*to_three).disk_pages > 0) {}
  EXPECT_EQ(get(*to_three, {{0, 1}, {10, 1}}).value(), (Contents{{0, 1}, {10, 11}}));
  put(*to_three, {{10, 5}});
  EXPECT_EQ(stats(*to_three).changed_pages, 1u);
}

TEST_F(ImageArchiveTest, WhatWasSavedFindsRoomBeyondTheQuotaWhileTheServerHasAny) {
  constexpr PageNumber saved_pages = 200;
  const ServerAddress address{.unix_path = path("h1")};
  {
    auto server = start("h1");
    const auto link = open("h1");
    Contents contents;
    for (PageNumber page = 0; page < saved_pages; ++page) contents[page] = page % 3 + 1;  // fewer on the disk than they are
    put(*link, contents);
    const Status saved = save(*link, "image-1", image::cut_number(1), {}, {{0, saved_pages}});
    ASSERT_TRUE(saved) << saved.error().text();
  }
  auto server = start("h1", true, saved_pages + 50);
  const auto load = [&](ServerLink& link) { return answer_of<std::uint64_t>([&](auto told) { link.load({"image-1"}, {{0, saved_pages}}, told); }); };
  {
    const auto other = open(address, 20s, 1, nullptr, "other", 60), link = open(address, 20s, 2, nullptr, "vm", 10);
    const auto loaded = load(*link);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, Errc::no_space);
    EXPECT_NE(loaded.error().text().find("190 pages more are asked for, 180 of 250 are free"), std::string::npos) << loaded.error().text();
    ASSERT_TRUE(answer_of<void>([&](auto told) { other->set_quota(50, told); }));
    const auto again = load(*link);
    ASSERT_TRUE(again) << again.error().text();
    EXPECT_EQ(*again, saved_pages);
    EXPECT_EQ(stats(*link).quota_pages, saved_pages);
    EXPECT_EQ(get(*link, {{4, 2}}).value(), (Contents{{4, 2}, {5, 3}}));
    put(*link, {{4, 9}});
    EXPECT_EQ(LinkFixture::put(*link, {{saved_pages, 1}}).error().code, Errc::no_space);
  }
}

TEST_F(ImageArchiveTest, ABrokenConnectionInEveryPlaceOfASave) {
  auto server = start("h1");
  std::int64_t left = 0;
  std::mutex mutex;
  std::atomic<int> cuts = 0;
  Proxy proxy(path("proxy"), path("h1"), [&](std::span<std::byte> bytes) {
    const std::lock_guard lock(mutex);
    left -= static_cast<std::int64_t>(bytes.size());
    if (left > 0) return true;
    left = 1'000'000'000;
    ++cuts;
    return false;
  });
  for (int number = 1; number <= 20; ++number) {
    {
      const std::lock_guard lock(mutex);
      left = 1'000'000'000;
    }
    const auto link = open(ServerAddress{.unix_path = path("proxy")}, 20s, static_cast<std::uint64_t>(number));
    put(*link, {{5, static_cast<std::uint64_t>(number)}});
    {
      const std::lock_guard lock(mutex);
      left = 30 * number;  // what is said in a SAVE is about 600 bytes
    }
    const std::string name = "image-" + std::to_string(number);
    const Status saved = save(*link, name, image::cut_number(number), {}, {{5, 1}});
    ASSERT_TRUE(saved) << number << ": " << saved.error().text();
    link->close();
    io.restart();
    io.poll();
    auto part = image::PagePart::open(path("images") + "/" + name + "/pages-h1");
    ASSERT_TRUE(part) << part.error().text();
    Page content;
    ASSERT_TRUE(part->read(image::PageNumber{5}, content));
    EXPECT_EQ(std::memcmp(content.data(), page_with(static_cast<std::uint64_t>(number)).data(), page_bytes), 0);
  }
  EXPECT_GT(cuts, 10);
}

TEST_F(ImageArchiveTest, ADraftGoesWithItsOwnersEpochAndWithItsSession) {
  auto server = start("h1");
  const auto first = open("h1");
  put(*first, {{1, 1}});
  ASSERT_TRUE(answer_of<Saved>([&](auto told) { first->save({"image-1", image::cut_number(1), {}}, told); }));
  EXPECT_TRUE(std::filesystem::exists(path("images") + "/image-1"));
  const auto second = open(ServerAddress{.unix_path = path("h1")}, 20s, 2);
  put(*second, {{1, 1}});
  EXPECT_TRUE(save(*second, "image-2", image::cut_number(2), {}, {{1, 1}})) << "that of the older epoch was abandoned";
  // Abandoned behind the newer one's back, on a thread of the older session.
  const auto there = [&] { return std::filesystem::exists(path("images") + "/image-1"); };
  for (const Instant limit = os::now() + 20s; there() && os::now() < limit;) (void)get(*second, {{1, 1}});
  EXPECT_FALSE(there());
  ASSERT_TRUE(answer_of<Saved>([&](auto told) { second->save({"image-3", image::cut_number(3), {}}, told); }));
  ASSERT_TRUE(answer_of<void>([&](auto told) { second->end(told); }));
  server.reset();
  EXPECT_FALSE(std::filesystem::exists(path("images") + "/image-3"));
  EXPECT_TRUE(std::filesystem::exists(path("images") + "/image-2/pages-h1/pages.index"));
}

TEST_F(ImageArchiveTest, ASlowSaveHoldsUpNoOtherSession) {
  auto server = start("h1");
  const auto session = [&](const std::string& name) { return open({.unix_path = path("h1")}, 20s, 1, nullptr, name); };
  const auto slow = session("slow"), saves = session("saves"), loads = session("loads");
  for (PageNumber first = 0; first < 4 * SavePace::piece_bytes / page_bytes; first += 256) {
    Contents some;
    for (PageNumber page = first; page < first + 256; ++page) some[page] = page + 1;
    put(*slow, some);
  }
  // Its first round goes on behind the answer.
  ASSERT_TRUE(answer_of<Saved>([&](auto told) { slow->save({.name = "image-1", .cut = image::cut_number(1), .base = {}, .base_name = {}, .bytes_per_second = 1}, told); }));
  ASSERT_TRUE(answer_of<void>([&](auto told) { slow->fix("image-1", told); }));
  const auto ended = std::make_shared<bool>(false);
  slow->finish("image-1", {{0, 1}}, [ended](const Result<Saved>&) { *ended = true; });
  put(*saves, {{1, 5}});
  const Status saved = save(*saves, "image-2", image::cut_number(2), {}, {{1, 1}});
  EXPECT_TRUE(saved) << saved.error().text();
  const auto loaded = answer_of<std::uint64_t>([&](auto told) { loads->load({"image-2"}, {{1, 1}}, told); });
  EXPECT_TRUE(loaded) << loaded.error().text();
  EXPECT_EQ(get(*loads, {{1, 1}}).value(), (Contents{{1, 5}}));
  EXPECT_FALSE(*ended) << "a megabyte at 1 byte/s takes twelve days";
}

TEST_F(ImageArchiveTest, WithoutAnArchiveItSaysSo) {
  auto server = start("h1", false);
  const auto link = open("h1");
  EXPECT_EQ(answer_of<Saved>([&](auto told) { link->save({"image-1", image::cut_number(1), {}}, told); }).error().code, Errc::unsupported);
  EXPECT_EQ(answer_of<std::uint64_t>([&](auto told) { link->load({"image-1"}, {}, told); }).error().code, Errc::unsupported);
}

TEST_F(ImageArchiveTest, LongWorkIsWaitedForWhileItsServerLives) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    std::uint64_t save = 0;
    int stats = 0;
    while (const auto request = peer.read()) {
      if (request->header.operation == Operation::save) save = request->header.id;
      if (request->header.operation != Operation::stat) continue;
      peer.send(Operation::stats, request->header.id, make_stats({}));
      if (++stats == 4) peer.send(Operation::done, save, make_saved({7, 8}));
    }
  });
  const auto link = open(ServerAddress{.unix_path = path("raw")}, 200ms);
  const auto saved = answer_of<Saved>([&](auto told) { link->save({"image-1", image::cut_number(1), {}}, told); });
  ASSERT_TRUE(saved) << saved.error().text();
  EXPECT_EQ(saved->pages, 7u);
  EXPECT_EQ(link->traffic().reconnections, 0u);
}

TEST_F(ImageArchiveTest, ASilentServerAtLongWorkIsDeadAfterPatience) {
  RawServer raw(path("raw"), [](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    while (peer.read()) {}
  });
  const auto link = open(ServerAddress{.unix_path = path("raw")}, 50ms);
  EXPECT_FALSE(answer_of<Saved>([&](auto told) { link->save({"image-1", image::cut_number(1), {}}, told); }));
  EXPECT_FALSE(link->alive());
}

// ---- MOVE ------------------------------------------------------------------------------------------------------------

TEST_F(ImageArchiveTest, PagesMoveFromServerToServer) {
  auto one = start("h1"), two = start("h2");
  const auto to_one = open("h1"), to_two = open("h2");
  Contents all;
  for (PageNumber first = 0; first < 3000; first += 250) {
    Contents some;
    for (PageNumber page = first; page < first + 250; ++page) all[page] = some[page] = page % 4 == 0 ? 0 : page + 1;
    put(*to_one, some);
  }
  put(*to_two, {{7, 777}});
  const auto moved = answer_of<std::uint64_t>(
      [&](auto told) { to_one->move({{0, 2000}, {2500, 1000}}, {.unix_path = path("h2")}, to_two->instance(), told); });
  ASSERT_TRUE(moved) << moved.error().text();
  EXPECT_EQ(*moved, 2500u);
  all[7] = 777;  // what is there already is newer
  for (PageNumber first = 0; first < 3000; first += 250) {
    const auto got = get(*to_two, {{first, 250}});
    ASSERT_TRUE(got);
    if (first < 2000 || first >= 2500)
      ASSERT_EQ(*got, Contents(all.lower_bound(first), all.lower_bound(first + 250)));
    else
      ASSERT_TRUE(got->empty());
  }
  EXPECT_EQ(to_two->traffic().reconnections, 0u) << "the mover fences nobody";
  EXPECT_EQ(get(*to_one, {{8, 2}}).value(), (Contents{{8, 0}, {9, 10}})) << "and they are still here";
}

TEST_F(ImageArchiveTest, MovesToAServerUseOneConnection) {
  std::atomic<int> connections = 0, puts = 0;
  RawServer raw(path("raw"), [&](RawPeer& peer, int) {
    ++connections;
    while (const auto frame = peer.read()) {
      if (frame->header.operation == Operation::put) ++puts;
      if (frame->header.operation == Operation::hello) peer.send(Operation::welcome, frame->header.id, make_welcome({77, 0}));
      else peer.send(Operation::done, frame->header.id, {});
    }
  });
  auto one = start("h1");
  const auto to_one = open("h1");
  put(*to_one, {{1, 1}, {2, 2}});
  for (const PageNumber page : {1, 2, 1})
    EXPECT_EQ(answer_of<std::uint64_t>([&](auto told) { to_one->move({{page, 1}}, {.unix_path = path("raw")}, 77, told); }).value(), 1u);
  EXPECT_EQ(puts, 3);
  EXPECT_EQ(connections, 1);
}

TEST_F(ImageArchiveTest, AMoverThatAnEarlierOwnerSentMayNotPut) {
  auto server = start("h1");
  const auto link = open("h1");
  const RawPeer mover = RawPeer::connect(path("h1"));
  const Hello hello{.epoch = 1, .generation = link->instance(), .pages = guest_pages, .quota_pages = 0, .role = Role::mover, .session = "vm"};
  ASSERT_EQ(mover.ask(Operation::hello, 1, make_hello(hello))->header.operation, Operation::welcome);
  ASSERT_TRUE(answer_of<SessionStats>([&](auto told) { link->inherit(2, 2, told); }));
  EXPECT_EQ(mover.ask(Operation::put, 2, put_body({{1, 1}}).bytes)->error().code, Errc::stale_epoch);
  EXPECT_EQ(get(*link, {{1, 1}}).value(), Contents{});
}

TEST_F(ImageArchiveTest, AMoveThatCannotBeSaysWhy) {
  auto one = start("h1"), two = start("h2");
  const auto to_one = open("h1"), to_two = open("h2");
  put(*to_one, {{1, 1}});
  const auto error = [&](const std::string& where, std::uint64_t instance) {
    return answer_of<std::uint64_t>([&](auto told) { to_one->move({{1, 1}}, {.unix_path = path(where)}, instance, told); }).error().code;
  };
  EXPECT_EQ(error("h2", to_two->instance() + 1), Errc::permission) << "only the owner knows it";
  EXPECT_EQ(error("nowhere", 1), Errc::refused);
  two.reset();
  EXPECT_EQ(error("h2", 1), Errc::refused);
  EXPECT_EQ(get(*to_one, {{1, 1}}).value(), (Contents{{1, 1}}));
}

TEST_F(ImageArchiveTest, AServerMayEndInTheMiddleOfAMoveAndOfASave) {
  class Slow : public DirectoryArchive {
   public:
    using DirectoryArchive::DirectoryArchive;
    std::uint64_t bytes_per_second() const override { return 1; }
  };
  std::atomic<bool> moves = false;
  RawServer silent(path("silent"), [&moves](RawPeer& peer, int) {
    if (peer.read()) peer.send(Operation::welcome, 1, make_welcome({77, 0}));
    moves = true;
    while (peer.read()) {}
  });
  auto server = std::make_unique<MemoryServer>(
      MemoryServer::Options{.capacity_pages = guest_pages, .archive = std::make_shared<Slow>(path("images"), "h1")});
  ASSERT_TRUE(server->listen_unix(path("h1"), 0600));
  const auto link = open("h1");
  for (PageNumber first = 0; first < 1000; first += 250) {
    Contents some;
    for (PageNumber page = first; page < first + 250; ++page) some[page] = page + 1;
    put(*link, some);
  }
  int failed = 0;
  ASSERT_TRUE(answer_of<Saved>([&](auto told) { link->save({"image-1", image::cut_number(1), {}}, told); }));
  ASSERT_TRUE(answer_of<void>([&](auto told) { link->fix("image-1", told); }));
  link->move({{0, 1000}}, {.unix_path = path("silent")}, 77, [&](const Result<std::uint64_t>& moved) { failed += !moved; });
  link->finish("image-1", {{0, 1000}}, [&](const Result<Saved>& saved) { failed += !saved; });
  io.restart();
  while (!moves) io.poll();
  EXPECT_TRUE(std::filesystem::exists(path("images") + "/image-1/draft-h1/pages.log"));
  server.reset();
  io.restart();
  while (link->alive() && io.run_one() > 0) {}
  EXPECT_EQ(failed, 2);
  EXPECT_FALSE(std::filesystem::exists(path("images") + "/image-1"));
}

/// Whoever asked is gone while the other server has not even said WELCOME: nobody is to be told what came of it.
TEST_F(ImageArchiveTest, AMoveThatNobodyWaitsForAnyMoreEnds) {
  std::promise<void> asked, asker_gone;
  RawServer silent(path("silent"), [&](RawPeer& peer, int number) {
    (void)peer.read();
    if (number > 1) return;
    asked.set_value();
    asker_gone.get_future().wait();
  });
  MemoryServer server({.capacity_pages = guest_pages, .threads = 1});
  ASSERT_TRUE(server.listen_unix(path("h1"), 0600));
  const auto link = open("h1");
  put(*link, {{1, 1}});
  link->move({{1, 1}}, {.unix_path = path("silent")}, 77, [](const Result<std::uint64_t>&) {});
  io.restart();
  for (auto told = asked.get_future(); told.wait_for(std::chrono::seconds(0)) != std::future_status::ready;) io.poll();
  link->close();
  const auto next = open(ServerAddress{.unix_path = path("h1")}, 20s, 2);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(get(*next, {{1, 1}}).value(), Contents{});  // the one thread has seen the end of the first connection by then
  asker_gone.set_value();  // the connection is cut, and the move fails
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(get(*next, {{1, 1}}).value(), Contents{});
}

TEST_F(ImageArchiveTest, ServersMoveByTlsWithTheirOwnNames) {
  auto authority = wire::Authority::open_or_create(directory.path() / "ca");
  ASSERT_TRUE(authority);
  auto one = start("h1"), two = start("h2");
  const auto port_one = one->listen_tls("127.0.0.1", 0, *authority->issue("agent:h1"));
  const auto port_two = two->listen_tls("127.0.0.1", 0, *authority->issue("agent:h2"));
  ASSERT_TRUE(port_one && port_two);
  const wire::Identity own = *authority->issue("agent:h0");
  const ServerAddress at_two{.address = "127.0.0.1", .port = *port_two, .expected_peer = "agent:h2"};
  const auto to_one = open({.address = "127.0.0.1", .port = *port_one, .expected_peer = "agent:h1"}, 20s, 1, &own);
  const auto to_two = open(at_two, 20s, 1, &own);
  put(*to_one, {{1, 1}, {2, 0}});
  ASSERT_TRUE(answer_of<std::uint64_t>([&](auto told) { to_one->move({{0, 5}}, at_two, to_two->instance(), told); }));
  EXPECT_EQ(get(*to_two, {{0, 5}}).value(), (Contents{{1, 1}, {2, 0}}));
}

TEST_F(ImageArchiveTest, AMoverMayOnlyPut) {
  auto server = start("h1");
  const auto link = open("h1");
  const RawPeer mover = RawPeer::connect(path("h1"));
  const Hello hello{.epoch = 1, .generation = link->instance(), .pages = guest_pages, .quota_pages = 0, .role = Role::mover, .session = "vm"};
  ASSERT_EQ(mover.ask(Operation::hello, 1, make_hello(hello))->header.operation, Operation::welcome);
  EXPECT_EQ(mover.ask(Operation::put, 2, put_body({{1, 1}}).bytes)->header.operation, Operation::done);
  std::uint64_t id = 2;
  for (const Operation operation : {Operation::get, Operation::drop, Operation::list, Operation::save, Operation::fix, Operation::finish,
                                    Operation::keep, Operation::abandon, Operation::load, Operation::move, Operation::quota, Operation::end})
    EXPECT_EQ(mover.ask(operation, ++id, {})->error().code, Errc::permission) << name_of(operation);
  EXPECT_EQ(get(*link, {{1, 1}}).value(), (Contents{{1, 1}}));
}

}  // namespace
}  // namespace yado::pager
