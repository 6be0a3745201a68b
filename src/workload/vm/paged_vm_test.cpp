// Guests whose memory is split: real QEMU, real pager, real memory servers; a guest that checks every word.
#include <nlohmann/json.hpp>

#include "wire/listen.hpp"
#include "workload/vm/paged_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;
using PagedVmProcessTest = testing::PagedVmTest;

TEST_F(PagedVmProcessTest, AGuestBootsAndRunsWithAQuarterOfItsMemoryHere) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  expect_flawless();
  write_a_while('w');
  expect_flawless();
  const auto use = vm_->stats();
  ASSERT_OK(use);
  EXPECT_LE(use->guest_bytes, memory_bytes / 4);
  std::uint64_t held = 0;
  for (const auto& [name, host] : hosts_)
    for (const auto& session : host.server->sessions()) held += session.stats.data_pages;
  EXPECT_GT(held, 0u);
  const auto figures = ask_pager(vm_->pager(), R"({"do":"figures"})");
  ASSERT_OK(figures);
  EXPECT_NE(figures->find("\"remote_faults\""), std::string::npos);
}

TEST_F(PagedVmProcessTest, ALiveCheckpointOfAllHostsIsRestoredOnOthers) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  write_a_while('w');
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  ASSERT_EQ(image.shares.size(), 3u);
  for (const MemoryShare& share : image.shares) EXPECT_GT(share.pages, 0u) << share.host;
  expect_flawless();  // it runs on
  vm_.reset();

  // On one host alone, from copies of all shares.
  Place alone = place("alone", memory_bytes, {});
  alone.paging->config.image = image.chain;
  ASSERT_NO_FATAL_FAILURE(restore(image, alone));
  expect_flawless();
  write_a_while('w');
  expect_flawless();
  vm_.reset();

  // With a smaller share, over another host that had nothing to do with it.
  add_host("h4");
  Place other = place("other", memory_bytes / 4, {"h4"});
  other.paging->config.image = image.chain;
  ASSERT_NO_FATAL_FAILURE(restore(image, other));
  write_a_while('w');
  expect_flawless();
  // And saved from there once more, while half of it still lies in the image.
  Image second{.name = "other-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(second));
  vm_.reset();

  // Where it was: every host has its share in its own store.
  Place same = place("a", memory_bytes / 2, {"h2", "h3"});
  fs::remove_all(same.directory);
  fs::create_directories(same.directory);
  same.paging->config.image = {{image.directory / "memory"}};
  for (auto& server : same.paging->config.servers) server.load = {image.name + "." + server.host};
  ASSERT_NO_FATAL_FAILURE(restore(image, same));
  expect_flawless();
  vm_.reset();

  Place again = place("again", memory_bytes / 2, {"h3"});
  again.paging->config.image = second.chain;
  ASSERT_NO_FATAL_FAILURE(restore(second, again));
  expect_flawless();
}

TEST_F(PagedVmProcessTest, AChainOfIncrementalCheckpointsHoldsWhatChangedWhereverItWas) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  std::vector<Image> images;
  std::uint64_t whole = 0;
  for (int i = 0; i < 10; ++i) {
    write_a_while(i % 2 == 0 ? 'h' : 'w', 5);
    images.push_back({.name = fmt::format("a-img.{}", i + 1)});
    ASSERT_NO_FATAL_FAILURE(checkpoint(images.back(), i == 0 ? nullptr : &images[images.size() - 2]));
    std::uint64_t pages = 0;
    for (const MemoryShare& share : images.back().shares) pages += share.pages;
    if (i == 0) {
      whole = pages;
    } else {
      EXPECT_LT(pages, whole) << i;
    }
  }
  vm_.reset();
  for (const std::size_t i : {9u, 1u}) {
    Place where = place(fmt::format("r{}", i), memory_bytes / 2, {"h3"});
    where.paging->config.image = images[i].chain;
    ASSERT_NO_FATAL_FAILURE(restore(images[i], where));
    expect_flawless();
    vm_.reset();
  }
}

/// As it lies in agents' stores: each host has its own logs, and the main host the indices of all. Hosts load what is newest in theirs.
TEST_F(PagedVmProcessTest, AChainIsRestoredWhereItWasSavedWithoutALogBeingCopied) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  std::vector<Image> images;
  for (int i = 0; i < 4; ++i) {
    write_a_while(i % 2 == 0 ? 'h' : 'w', 5);
    images.push_back({.name = fmt::format("a-img.{}", i + 1)});
    ASSERT_NO_FATAL_FAILURE(checkpoint(images.back(), i == 0 ? nullptr : &images[images.size() - 2]));
    EXPECT_EQ(images.back().base_cut, i == 0 ? image::CutId() : images[images.size() - 2].cut);
  }
  expect_flawless();
  vm_.reset();
  Place where = place("a", memory_bytes / 4, {"h2", "h3"});
  fs::remove_all(where.directory);
  fs::create_directories(where.directory);
  for (const Image& image : images) {
    auto& parts = where.paging->config.image.emplace_back(std::vector<fs::path>{image.directory / "memory"});
    for (auto& server : where.paging->config.servers) {
      server.load.push_back(image.name + "." + server.host);
      const fs::path index = directory_.path() / "indices" / server.load.back();
      fs::create_directories(index);
      fs::copy_file(share_of(image.name, server.host) / "pages.index", index / "pages.index");
      parts.push_back(index);
      server.parts.push_back(index);
    }
  }
  const Place again = where;
  ASSERT_NO_FATAL_FAILURE(restore(images.back(), where));
  expect_flawless();
  write_a_while('w');
  expect_flawless();

  // It goes on from what it was restored from, and from nothing else: of another cut nobody knows what changed since.
  const auto pages_of = [](const Image& image) {
    std::uint64_t pages = 0;
    for (const MemoryShare& share : image.shares) pages += share.pages;
    return pages;
  };
  for (const auto& [base, name] : {std::pair(&images.back(), "a-img.5"), std::pair(&images.front(), "a-img.6")}) {
    SCOPED_TRACE(name);
    const bool known = base == &images.back();
    Image next{.name = name};
    ASSERT_NO_FATAL_FAILURE(checkpoint(next, base));
    EXPECT_EQ(next.base_cut, known ? base->cut : image::CutId());
    if (known) {
      EXPECT_LT(pages_of(next), pages_of(images.front()));
    }
    vm_.reset();
    Place alone = place(fmt::format("alone-{}", name), memory_bytes, {});
    alone.paging->config.image = next.chain;
    if (!known) alone.paging->config.image = {next.chain.back()};
    ASSERT_NO_FATAL_FAILURE(restore(next, alone));
    expect_flawless();
    write_a_while('h');
  }
  vm_.reset();

  // A share of the chain is damaged: no guest, and the error says whose it is.
  const fs::path damaged = share_of(images[1].name, "h2") / "pages.index";
  fs::resize_file(damaged, fs::file_size(damaged) - 8);
  Place broken = again;
  broken.directory = directory_.path() / "broken";
  fs::create_directories(broken.directory);
  broken.paging->config.epoch = ++epoch_;
  PagedMemory nothing({});
  const auto restored = Vm::restore(spec(), broken, qemu(), images.back().parts(), nothing);
  ASSERT_FALSE(restored);
  EXPECT_NE(restored.error().message.find("h2"), std::string::npos) << restored.error().text();
  EXPECT_NE(restored.error().message.find("a-img.2.h2"), std::string::npos) << restored.error().text();
}

/// A share has each page once, and so has the server that loads it.
TEST_F(PagedVmProcessTest, WhatServersHaveLoadedIsHeldTwiceAgain) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}, 2));
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  vm_.reset();
  Place same = place("a", memory_bytes / 4, {"h2", "h3"}, 2);
  fs::remove_all(same.directory);
  fs::create_directories(same.directory);
  same.paging->config.image = {{image.directory / "memory"}};
  for (auto& server : same.paging->config.servers) server.load = {image.name + "." + server.host};
  ASSERT_NO_FATAL_FAILURE(restore(image, same));
  wait_until_redundant();
  EXPECT_GT(figure("pages_rebuilt").value_or(0), 0u);
  hosts_["h2"].server.reset();
  expect_flawless();
}

TEST_F(PagedVmProcessTest, ACheckpointUnderWaySaysHowMuchEachHostHasSaved) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}));
  const auto saving = [&] {
    std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> hosts;  // saved, left
    const auto figures = ask_pager(vm_->pager(), R"({"do":"figures"})");
    EXPECT_OK(figures);
    for (const auto& share : nlohmann::json::parse(figures.value_or("{}")).value("saving", nlohmann::json::array()))
      hosts[share.value("host", "")] = {share.value("saved_bytes", 0ull), share.value("left_bytes", 0ull)};
    return hosts;
  };
  EXPECT_TRUE(saving().empty());
  const fs::path directory = directory_.path() / "a-img.1";
  for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(directory / part);
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> seen;
  PagedMemory memory({.control = vm_->pager(), .part = directory / "memory", .name = "a-img.1", .cut = image::CutId::of("1"), .base_cut = {}, .base = {},
                      .progress = [&](std::uint64_t, std::uint64_t) {
                        // What servers say comes with a later look.
                        const auto has_saved = [&](const std::string& host) { return seen.contains(host) && seen[host].first > 0; };
                        while (!(has_saved("") && has_saved("h2") && has_saved("h3")) && vm_->run_state()) seen = saving();
                      }});
  ASSERT_OK(vm_->save(directory / "device-state", directory / "disk", memory));
  ASSERT_OK(memory.keep());
  for (const char* host : {"", "h2", "h3"}) EXPECT_GT(seen[host].first, 0u) << host;
  std::uint64_t all = 0;
  for (const auto& [host, share] : seen) all += share.first + share.second;
  EXPECT_GE(all, std::uint64_t{pattern_mib} << 20);
  EXPECT_TRUE(saving().empty());
}

/// What is written faster than it is saved is copied in memory, of which there may be too little.
TEST_F(PagedVmProcessTest, AGuestThatWritesMoreThanThereIsRoomForIsSlowedDown) {
  boot(place("a", memory_bytes, {}));
  // Of no room at all it has nothing: what is left in the end is written while it stands still.
  for (const std::uint64_t room : {1_MiB, 0_MiB}) {
    SCOPED_TRACE(room);
    ASSERT_NO_FATAL_FAILURE(write_a_while('w'));
    Image slow{.name = fmt::format("a-img.{}", room)};
    slow.directory = directory_.path() / slow.name;
    for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(slow.directory / part);
    int asked = 0;
    PagedMemory memory({.control = vm_->pager(), .part = slow.directory / "memory", .name = slow.name, .cut = image::CutId::of(slow.name), .base_cut = {}, .base = {},
                        .progress = {}, .room_for_copies = [&] { return ++asked, room; }});
    auto saved = vm_->save(slow.directory / "device-state", slow.directory / "disk", memory);
    ASSERT_OK(saved);
    slow.saved = std::move(*saved);
    slow.chain = {{slow.directory / "memory"}};
    ASSERT_OK(memory.keep());
    EXPECT_GT(asked, 1) << "it wrote less than a megabyte meanwhile";
    expect_flawless();
    vm_.reset();
    Place where = place(fmt::format("b{}", room), memory_bytes, {});
    where.paging->config.image = slow.chain;
    ASSERT_NO_FATAL_FAILURE(restore(slow, where));
    expect_flawless();
  }
}

TEST_F(PagedVmProcessTest, ACallThatIsNotUnderstoodIsRefusedAndThePagerGoesOn) {
  boot(place("a", memory_bytes, {}));
  for (const char* call : {R"({"do":"limit","bytes":"x"})", R"({"do":5})", R"([])", "{", R"({"do":"nothing"})", R"({"do":"save","name":7})"}) {
    const auto refused = ask_pager(vm_->pager(), call);
    EXPECT_FALSE(refused) << call;
  }
  const auto endless = ask_pager(vm_->pager(), std::string(2_MiB, 'x'));
  ASSERT_FALSE(endless);
  EXPECT_NE(endless.error().message.find("one line of at most"), std::string::npos) << endless.error().text();
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  expect_flawless();
}

/// `yado top` asks every second, for days.
TEST_F(PagedVmProcessTest, WhoAskAgainAndAgainOrAllAtOnceDoNotEndThePager) {
  boot(place("a", memory_bytes, {}));
  const std::uint64_t before = pager_address_space();
  constexpr int asked = 500;  // the stack of a thread that nobody joins is 8 MiB
  for (int i = 0; i < asked; ++i) ASSERT_TRUE(figure("faults"));
  EXPECT_LT(pager_address_space(), before + asked * 2_MiB);

  std::vector<os::Fd> silent;
  for (int i = 0; i < 100; ++i) silent.push_back(connected_to_pager());
  const auto refused = ask_pager(vm_->pager(), R"({"do":"figures"})");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::no_space) << refused.error().text();
  silent.clear();
  for (bool heard = false; !heard;) {
    const auto figures = ask_pager(vm_->pager(), R"({"do":"figures"})");
    heard = figures.has_value();
    ASSERT_TRUE(heard || figures.error().code == Errc::no_space) << figures.error().text();
  }
  expect_flawless();
}

/// kill -9 of the pager at any moment: the guest ends, and the image before is whole.
TEST_F(PagedVmProcessTest, WhoDiesWhenDuringACheckpointTheGuestOrTheImageBeforeIsRight) {
  boot(place("a", memory_bytes / 4, {"h2", "h3"}, 2));
  Image good{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(good));
  for (int moment = 0; moment < Breaking::moments; ++moment)
    for (const std::string victim : {"saver", "server", "pager"}) {
      SCOPED_TRACE(fmt::format("{} at moment {}", victim, moment));
      Image broken{.name = fmt::format("a-img.{}-{}", moment, victim)};
      broken.directory = directory_.path() / broken.name;
      for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(broken.directory / part);
      write_a_while('w', 2);
      std::optional<PagedMemory> memory(PagedMemory::Options{.control = vm_->pager(), .part = broken.directory / "memory", .name = broken.name,
                                                             .cut = image::CutId::of(broken.name), .base_cut = {}, .base = {}, .progress = {}});
      Breaking breaking(*memory, moment, [&] {
        if (victim == "saver") memory.emplace(PagedMemory::Options{.control = vm_->pager(), .part = {}, .name = {}, .cut = {}, .base_cut = {}, .base = {}, .progress = {}});
        if (victim == "server") hosts_["h3"].server.reset();
        if (victim == "pager") kill_pager();
      });
      (void)vm_->save(broken.directory / "device-state", broken.directory / "disk", breaking);
      memory.reset();  // without keep(): whatever was saved is not an image
      if (victim == "pager") {
        const auto gone = vm_->process().ended_within(hang);
        ASSERT_OK(gone);
        EXPECT_TRUE(*gone) << "a guest went on without its pager";
      } else {
        expect_flawless();
      }
      if (victim == "saver") {
        Image next{.name = fmt::format("a-img.{}-next", moment)};
        ASSERT_NO_FATAL_FAILURE(checkpoint(next));
        good = next;
        continue;
      }
      vm_.reset();
      hosts_.erase("h3");
      add_host("h3");
      Place where = place(fmt::format("m{}{}", moment, victim), memory_bytes / 4, {"h2", "h3"}, 2);
      where.paging->config.image = good.chain;
      where.paging->config.session = "a";  // a later life of the same
      ASSERT_NO_FATAL_FAILURE(restore(good, where));
      expect_flawless();
    }
}

TEST_F(PagedVmProcessTest, WithoutAMemoryServerItDoesNotStart) {
  Place where = place("a", memory_bytes / 2, {"h2"});
  hosts_.erase("h2");
  const auto started = Vm::start(spec(), where, qemu());
  ASSERT_FALSE(started);
  EXPECT_NE(started.error().message.find("memory on h2"), std::string::npos) << started.error().text();
}

/// As of a host whose death nobody has noticed yet: it does not refuse.
TEST_F(PagedVmProcessTest, AServerThatIsSilentFromTheBeginningIsDoneWithoutAndTakenUpWhenItAnswers) {
  hosts_.erase("h3");
  std::error_code error;
  fs::remove(directory_.path() / "h3.sock", error);
  auto silent = wire::make_unix_listener((directory_.path() / "h3.sock").native(), 0600);
  ASSERT_OK(silent);
  Place where = place("a", memory_bytes / 4, {"h2"}, 2);
  where.paging->config.servers.push_back({.host = "h3", .unix_path = directory_.path() / "h3.sock", .quota_bytes = memory_bytes});
  boot(where);
  write_a_while('w', 5);
  EXPECT_GT(figure("pages_without_redundancy").value_or(0), 0u);
  silent->file.remove();
  silent->socket.reset();
  add_host("h3");
  wait_until_redundant();
  hosts_.erase("h2");
  expect_flawless();
}

TEST_F(PagedVmProcessTest, TheEndOfItsMemoryEndsTheGuestAndSaysWhy) {
  for (const bool pages_lost : {true, false}) {
    boot(place(pages_lost ? "a" : "b", memory_bytes / 4, {"h2"}));
    if (pages_lost) hosts_.erase("h2");  // with the only copy of its pages
    else kill_pager();
    (void)vm_->console().send("v");  // it may have ended
    const auto gone = vm_->process().ended_within(hang);
    ASSERT_OK(gone);
    EXPECT_TRUE(*gone);
    const auto end = vm_->reap();
    ASSERT_OK(end);
    ASSERT_TRUE(*end);
    EXPECT_NE((*end)->reason.find(pages_lost ? "its memory is lost: page " : "the pager has ended"), std::string::npos) << (*end)->reason;
    if (pages_lost) add_host("h2");
  }
}

}  // namespace
}  // namespace yado::vm
