#include "pager/pager.hpp"

#include <csignal>
#include <future>
#include <numeric>

#include "os/clock.hpp"
#include "pager/paged_testing.hpp"

namespace yado::pager {
namespace {

using namespace testing;

/// The program with a pager and two servers. Under tsan, too: what is paged is a program of its own.
class PagerLiveTest : public ::testing::Test {
 protected:
  static constexpr unsigned mib = 64;
  static constexpr std::uint64_t pages = mib << 8;

  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: userfaultfd";
  }
  void start(std::uint64_t local_pages, unsigned copies = 1, std::uint32_t prefetch = 64) {
    auto paged = Paged::start(mib);
    ASSERT_TRUE(paged) << paged.error().text();
    paged_.emplace(std::move(*paged));
    remote_ = std::make_unique<Scattering>(Copies::Options{pages, copies, 7}, std::vector<PageServer*>{&a_, &b_});
    pager_ = std::make_unique<Pager>(paged_->memory(), *remote_, network_.io.get_executor(),
                                     Pager::Options{{.pages = pages, .local_limit = local_pages, .prefetch_most = prefetch}, 7, [this](const Error& why) {
                                       lost_.set_value(why.text());
                                       ::kill(paged_->memory().process(), SIGKILL);  // reaped by TearDown
                                     }});
    ASSERT_TRUE(paged_->memory().go());
    EXPECT_EQ(paged_->hear(), fmt::format("ok pages={}", pages));
  }
  void TearDown() override {
    if (!paged_) return;
    paged_->process().kill();
    pager_->stop();
    network_.stop();
  }
  void expect_right(const std::string& answer) { EXPECT_NE(answer.find(" bad=0"), std::string::npos) << answer; }
  std::uint64_t file_pages() const {
    struct stat status {};
    ::fstat(paged_->file().get(), &status);
    return static_cast<std::uint64_t>(status.st_blocks) / 8;
  }

  /// Of every page, while it stands still: what is here is newer than what a server has, unless it has just left.
  std::vector<std::vector<std::byte>> contents(const PageBits& here) {
    std::vector<std::vector<std::byte>> all(pages, std::vector<std::byte>(page_bytes));
    network_.run([&] {
      for (PageNumber page = 0; page < pages; ++page) {
        if (here.test(page)) {
          EXPECT_TRUE(paged_->memory().read(page, all[page]));
          const auto begin = static_cast<off_t>(page * page_bytes);
          if (::lseek(paged_->file().get(), begin, SEEK_DATA) == begin) continue;
        }
        for (const MapServer* one : {&a_, &b_})
          if (const auto found = one->contents().find(page); found != one->contents().end() && !found->second.empty()) all[page] = found->second;
      }
    });
    return all;
  }
  /// How often a server was told that a page is as it was at the cut, which it does not save again then: it was.
  std::uint64_t said_unchanged(const std::vector<std::vector<std::byte>>& at_cut) {
    std::uint64_t unchanged = 0, not_so = 0;
    network_.run([&] {
      for (const MapServer* server : {&a_, &b_})
        for (auto [page, came] : server->said_unchanged()) {
          came.resize(page_bytes);
          ++unchanged;
          not_so += came != at_cut[page] ? 1 : 0;
        }
    });
    EXPECT_EQ(not_so, 0u) << "of " << unchanged;
    return unchanged;
  }

  /// Gives pages in an order in which no two are neighbours, when it is told to: they are put into place one by one.
  class Scattering : public Copies {
   public:
    using Copies::Copies;
    void fetch(std::vector<PageNumber> wanted, Arrived arrived) override {
      Copies::fetch(std::move(wanted), [this, arrived = std::move(arrived)](Result<Piece> piece) {
        if (piece && scatter) {
          Piece odd{{}, {}, piece->hold}, even{{}, {}, piece->hold};
          for (std::size_t i = 0; i < piece->pages.size(); ++i) {
            Piece& to = piece->pages[i] % 2 != 0 ? odd : even;
            to.pages.push_back(piece->pages[i]);
            to.contents.push_back(piece->contents[i]);
          }
          odd.pages.insert(odd.pages.end(), even.pages.begin(), even.pages.end());
          odd.contents.insert(odd.contents.end(), even.contents.begin(), even.contents.end());
          piece = std::move(odd);
        }
        arrived(std::move(piece));
      });
    }
    std::atomic<bool> scatter = false;
  };

  Network network_;
  MapServer a_{network_.io.get_executor(), "a"}, b_{network_.io.get_executor(), "b"};
  std::optional<Paged> paged_;
  std::unique_ptr<Scattering> remote_;
  std::unique_ptr<Pager> pager_;
  std::promise<std::string> lost_;
};

TEST_F(PagerLiveTest, MemoryLargerThanItsShareIsRightWordForWord) {
  start(pages / 4);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  expect_right(paged_->ask("v"));
  expect_right(paged_->ask("w 1500 100"));
  expect_right(paged_->ask("s 700"));
  expect_right(paged_->ask("v"));
  EXPECT_LE(file_pages(), pages / 4);
  const PagerFigures figures = pager_->figures();
  EXPECT_GT(figures.table.paged_out, pages / 2);
  EXPECT_GT(figures.remote_faults, 0u);
  RecordProperty("fault_p50_us", static_cast<int>(figures.fault_p50 / 1us));
  RecordProperty("fault_p99_us", static_cast<int>(figures.fault_p99 / 1us));
}

TEST_F(PagerLiveTest, AWorkingSetThatFitsStaysHere) {
  start(pages / 2);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  // How long it takes until the pager knows what is in use depends on the machine; that it does not.
  for (int rounds = 0, settled = false; !settled; ++rounds) {
    const std::uint64_t before = pager_->figures().table.paged_in;
    expect_right(paged_->ask("w 1000 30"));
    settled = pager_->figures().table.paged_in - before < pages / 20;
    ASSERT_LT(rounds, 10) << "what is in use is evicted";
  }
}

TEST_F(PagerLiveTest, TheShareMayChangeWhileItRuns) {
  start(pages);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  for (const std::uint64_t share : {pages / 8, pages / 2, std::uint64_t{64}, pages / 3}) {
    paged_->tell("w 600 100");
    pager_->set_local_limit(share);
    expect_right(paged_->hear());
    EXPECT_LE(file_pages(), share);
  }
  expect_right(paged_->ask("v"));
}

TEST_F(PagerLiveTest, WhatIsFetchedInTheBackgroundNeverStandsInFrontOfAFault) {
  start(pages / 4, 1, 1);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  pager_->set_local_limit(pages);
  network_.run([&] {
    a_.hold(true);
    b_.hold(true);
  });
  // The last quarter is here; of the first one, every page but those of the pieces that are held.
  std::vector<PageNumber> order(pages / 4);
  std::iota(order.begin(), order.end(), PageNumber{0});
  pager_->prefetch(order);
  const auto held = [&] { return network_.run([&] { return a_.held_back() + b_.held_back(); }); };
  const auto give_up = std::chrono::steady_clock::now() + hang;
  while (held() == 0 && std::chrono::steady_clock::now() < give_up) {}
  paged_->tell("v");
  // It wishes for pages one by one until it comes to one that is held: however long that takes, no more are asked for than a piece.
  EXPECT_LE(held(), BackgroundPace::large_piece);
  network_.run([&] {
    a_.hold(false);
    b_.hold(false);
  });
  expect_right(paged_->hear());
}

TEST_F(PagerLiveTest, ZeroPagesTakeNoRoomAnywhere) {
  start(pages / 8);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  EXPECT_EQ(paged_->ask("z 50"), fmt::format("ok pages={}", pages));
  expect_right(paged_->ask("v"));
  EXPECT_LE(network_.run([&] { return a_.held() + b_.held(); }), pages / 2 + pages / 8);
}

TEST_F(PagerLiveTest, WithTwoCopiesAServerMayDieUnderLoad) {
  start(pages / 4, 2);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  paged_->tell("w 1500 100");
  network_.run([&] {
    b_.die();
    remote_->server_died(1);
  });
  expect_right(paged_->hear());
  expect_right(paged_->ask("v"));
}

TEST_F(PagerLiveTest, WithOneCopyTheDeathOfItsServerEndsTheProcessAndNeverShowsItAWrongWord) {
  start(pages / 4, 1);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  paged_->tell("v");
  network_.run([&] {
    a_.die();
    remote_->server_died(0);
  });
  EXPECT_NE(lost_.get_future().get().find("lost"), std::string::npos);
  EXPECT_EQ(paged_->hear(), "") << "it went on without its memory";
}

TEST_F(PagerLiveTest, LostPagesEndAProcessThatDoesNotWantThemWhenThereIsACutToGoBackTo) {
  start(pages / 4, 1);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  const auto dies = [&](MapServer& server, std::size_t number) {
    network_.run([&] {
      server.die();
      remote_->server_died(number);
      pager_->end_if_lost();
    });
  };
  auto lost = lost_.get_future();
  for (int cut = 0; cut < 2; ++cut) {
    network_.run([&] { pager_->end_if_lost(); });
    EXPECT_EQ(lost.wait_for(0s), std::future_status::timeout) << "both servers live";
    ASSERT_TRUE(pager_->begin_save(false));
    ASSERT_TRUE(pager_->fix_save());
    pager_->end_save(cut == 1);  // the first one was abandoned
    if (cut == 1) break;
    dies(a_, 0);
    EXPECT_EQ(lost.wait_for(0s), std::future_status::timeout) << "there is nothing to go back to";
  }
  dies(b_, 1);
  EXPECT_NE(lost.get().find("more are lost"), std::string::npos);
  EXPECT_EQ(paged_->hear(), "");
}

TEST_F(PagerLiveTest, WithTwoCopiesTheDeathOfOneServerDoesNotEndAProcessWithACut) {
  start(pages / 4, 2);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  ASSERT_TRUE(pager_->begin_save(false));
  ASSERT_TRUE(pager_->fix_save());
  pager_->end_save(true);
  paged_->tell("w 500 100");
  network_.run([&] {
    b_.die();
    remote_->server_died(1);
    pager_->end_if_lost();
  });
  expect_right(paged_->hear());
  expect_right(paged_->ask("v"));
}

TEST_F(PagerLiveTest, FullServersSlowItDownAndDoNotStopIt) {
  start(pages / 4);
  paged_->tell("f");
  network_.run([&] {
    a_.refuse(true);
    b_.refuse(true);
  });
  EXPECT_EQ(paged_->hear(), fmt::format("ok pages={}", pages));
  expect_right(paged_->ask("v"));
  network_.run([&] {
    a_.refuse(false);
    b_.refuse(false);
  });
  // It finds out by itself.
  const auto give_up = std::chrono::steady_clock::now() + hang;
  while (file_pages() > pages / 4 && std::chrono::steady_clock::now() < give_up) expect_right(paged_->ask("w 100 100"));
  EXPECT_LE(file_pages(), pages / 4);
  expect_right(paged_->ask("v"));
}

/// What a host's log would hold.
struct Log {
  std::map<PageNumber, std::vector<std::byte>> newest;
  std::uint64_t puts = 0;
  Pager::SaveSink sink() {
    return [this](PageNumber page, const std::byte* content) -> Status {
      newest[page] = content == nullptr ? std::vector<std::byte>() : std::vector<std::byte>(content, content + page_bytes);
      ++puts;
      return {};
    };
  }
};

/// Everything that is here at the cut and belongs into the image was saved as it is.
void expect_newest(const Pager::Cut& cut, const Log& log, const std::vector<std::vector<std::byte>>& at_cut) {
  std::uint64_t wrong = 0, missing = 0;
  for (PageNumber number = cut.here.next(0); number < cut.here.size(); number = cut.here.next(number + 1)) {
    if (!cut.changed.test(number)) continue;
    const auto found = log.newest.find(number);
    if (found == log.newest.end()) {
      ++missing;
      continue;
    }
    std::vector<std::byte> saved = found->second;
    saved.resize(page_bytes);
    wrong += saved != at_cut[number] ? 1 : 0;
  }
  EXPECT_EQ(missing, 0u);
  EXPECT_EQ(wrong, 0u);
}

TEST_F(PagerLiveTest, ALiveCheckpointHoldsTheNewestOfEveryPageThatIsHere) {
  start(pages / 3);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  EXPECT_EQ(paged_->ask("z 10"), fmt::format("ok pages={}", pages));
  EXPECT_FALSE(pager_->begin_save(true)) << "there is nothing that changes could be counted from";
  for (int image = 0; image < 4; ++image) {
    SCOPED_TRACE(image);
    ASSERT_TRUE(pager_->begin_save(image > 0));
    EXPECT_FALSE(pager_->begin_save(false)) << "two at once";
    Log log;
    paged_->tell(image % 2 == 0 ? "w 400 100" : "w 400 25");
    for (int round = 0; round < 3; ++round) {
      ASSERT_TRUE(pager_->save_round(log.sink()));
      if (image < 2) continue;
      ASSERT_TRUE(pager_->copy_round());  // the round after it has newer pages than the copy
    }
    expect_right(paged_->hear());
    const auto cut = pager_->fix_save();  // it stands still: it waits for the next command
    ASSERT_TRUE(cut) << cut.error().text();
    const auto at_cut = contents(cut->here);
    if (image > 0) paged_->tell("w 100 100");  // it runs on before what is left was copied
    Log last = log;
    ASSERT_TRUE(pager_->finish_save(last.sink()));
    expect_newest(*cut, last, at_cut);
    pager_->watch_use();  // goes on during the next one
    if (image > 0) expect_right(paged_->hear());
    EXPECT_LT(last.puts - log.puts, pages / 2);
    if (image == 3) {
      EXPECT_LT(cut->changed.count(), pages / 2) << "25 % were in use since the last";
    }
    pager_->end_save(image != 1);  // the second one was abandoned: the third has its changes, too
  }
  expect_right(paged_->ask("v"));
}

TEST_F(PagerLiveTest, TheOrderOfUseBeginsWithWhatWasWantedSinceTheCut) {
  start(pages / 4, 1, 1);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  // The second cut knows nothing of what was wanted since the first.
  for (const std::vector<PageNumber>& places : {std::vector<PageNumber>{pages / 2, pages / 8, pages / 2 + 400, pages / 4},
                                                std::vector<PageNumber>{pages / 8 + 300, pages / 4 + 300, pages / 2 + 900}}) {
    ASSERT_TRUE(pager_->begin_save(false));
    ASSERT_TRUE(pager_->fix_save());
    ASSERT_TRUE(pager_->copy_rest());
    const PageBits here = pager_->here();
    std::vector<PageNumber> wanted;
    for (PageNumber page : places) {
      while (here.test(page)) ++page;
      paged_->ask(fmt::format("t {} {}", page, page));
      wanted.push_back(page);
    }
    std::vector<PageNumber> order = pager_->order_of_use();
    ASSERT_GT(order.size(), wanted.size()) << "what else is here, by recency";
    EXPECT_TRUE(std::ranges::equal(std::span(order).first(wanted.size()), wanted)) << ::testing::PrintToString(std::span(order).first(8));
    std::ranges::sort(order);
    EXPECT_TRUE(std::ranges::adjacent_find(order) == order.end()) << "each once";
    pager_->end_save(false);
  }
}

/// What is here and in view is read without a trap: it is taken out of view for that, and comes back in blocks of 16 pages (of so small a memory).
TEST_F(PagerLiveTest, AfterTheCutItIsSeenInWhichOrderPagesAreUsedThatAreHere) {
  start(pages);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  for (const std::vector<PageNumber>& places : {std::vector<PageNumber>{pages / 2 + 5, 3, pages - 1}, std::vector<PageNumber>{pages / 4, pages / 2 + 5}}) {
    ASSERT_TRUE(pager_->begin_save(false));
    ASSERT_TRUE(pager_->save_round([](PageNumber, const std::byte*) { return Status(); }));
    ASSERT_TRUE(pager_->fix_save());
    EXPECT_TRUE(pager_->used_since_cut().empty()) << "of the last cut it is too late, of this one too early";
    ASSERT_TRUE(pager_->copy_rest());
    pager_->watch_use();
    while (pager_->watching()) std::this_thread::yield();
    std::vector<PageNumber> wanted;
    const Instant begun = os::now();
    for (const PageNumber page : places) {
      paged_->ask(fmt::format("t {} {}", page, page));
      wanted.push_back(page);
      for (PageNumber at = page / 16 * 16; at < std::min<PageNumber>(page / 16 * 16 + 16, pages); ++at)
        if (at != page) wanted.push_back(at);
    }
    if (os::now() - begun > use_window / 2) GTEST_SKIP() << "the machine is too busy for that";
    std::vector<PageNumber> order = pager_->order_of_use();
    ASSERT_EQ(order.size(), pages);
    EXPECT_TRUE(std::ranges::equal(std::span(order).first(wanted.size()), wanted)) << ::testing::PrintToString(std::span(order).first(wanted.size()));
    pager_->end_save(true);
    EXPECT_EQ(pager_->used_since_cut(), wanted);
  }
  ASSERT_TRUE(pager_->begin_save(true));
  ASSERT_TRUE(pager_->fix_save());
  pager_->end_save(false);
  EXPECT_TRUE(pager_->used_since_cut().empty()) << "of a cut that was not kept";
  expect_right(paged_->ask("v"));
}

/// Whoever stands still for a checkpoint may want a page before it can go on, as QEMU's devices do.
TEST_F(PagerLiveTest, BetweenTheCutAndItsCopyPagesComeAlthoughThereIsNoRoom) {
  start(pages / 4);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  for (const bool kept : {false, true}) {
    ASSERT_TRUE(pager_->begin_save(false));
    const auto cut = pager_->fix_save();
    ASSERT_TRUE(cut) << cut.error().text();
    const auto at_cut = contents(cut->here);
    expect_right(paged_->ask("v"));  // everything that was here has to leave for it
    expect_right(paged_->ask("w 300 50"));
    Log log;
    ASSERT_TRUE(pager_->finish_save(log.sink()));
    expect_newest(*cut, log, at_cut);
    pager_->end_save(kept);
  }
  expect_right(paged_->ask("v"));
}

TEST_F(PagerLiveTest, AnIncrementalCheckpointMissesNoChangedPageWhereverItWent) {
  start(pages / 4);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  ASSERT_TRUE(pager_->begin_save(false));
  const auto first = pager_->fix_save();
  ASSERT_TRUE(first);
  const auto old = contents(first->here);
  ASSERT_TRUE(pager_->copy_rest());
  pager_->watch_use();
  pager_->end_save(true);
  expect_right(paged_->ask("w 300 20"));
  expect_right(paged_->ask("v"));  // everything moves once
  expect_right(paged_->ask("w 300 5"));
  ASSERT_TRUE(pager_->begin_save(true));
  const auto cut = pager_->fix_save();
  ASSERT_TRUE(cut);
  const auto now = contents(cut->here);
  std::uint64_t missed = 0, changed = 0;
  for (PageNumber page = 0; page < pages; ++page) {
    const bool differs = now[page] != old[page];
    changed += differs ? 1 : 0;
    missed += differs && !cut->changed.test(page) ? 1 : 0;
  }
  EXPECT_EQ(missed, 0u);
  EXPECT_GT(changed, 0u);
  EXPECT_LT(cut->changed.count(), pages / 2) << "pages that were only read count as changed";
  pager_->end_save(true);
  EXPECT_GT(said_unchanged(old), pages / 16) << "what was here at the cut, was not written since and had to leave";
}

TEST_F(PagerLiveTest, APageThatWasWrittenAsSoonAsItWasInPlaceIsHereAtTheCut) {
  constexpr std::uint32_t window = 256;
  start(pages / 4, 1, window);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  remote_->scatter = true;
  unsigned looks = 0, lost = 0;
  // One window behind the other, so that they grow.
  for (PageNumber page = 0; page < pages; page += 2) {
    if (const PageBits here = pager_->here(); here.test(page) || here.test(page + 1)) continue;
    ASSERT_TRUE(pager_->begin_save(false));
    paged_->ask(fmt::format("t {} {}", page, page + 1));  // the others of the window are still being put into place
    const auto cut = pager_->fix_save();
    ASSERT_TRUE(cut) << cut.error().text();
    ++looks;
    for (const PageNumber written : {page, page + 1}) lost += cut->here.test(written) ? 0 : 1;
    pager_->end_save(false);
  }
  EXPECT_EQ(lost, 0u) << "their servers have an older content";
  EXPECT_GT(looks, pages / window / 2);
  expect_right(paged_->ask("v"));
}

TEST_F(PagerLiveTest, WhatWasWrittenSinceTheLastCutIsNeverSaidToBeUnchangedBesideACheckpoint) {
  constexpr std::uint64_t local = pages / 64;
  start(local);
  EXPECT_EQ(paged_->ask("f"), fmt::format("ok pages={}", pages));
  ASSERT_TRUE(pager_->begin_save(false));
  const auto cut = pager_->fix_save();
  ASSERT_TRUE(cut);
  const auto at_cut = contents(cut->here);
  pager_->end_save(true);
  paged_->tell("w 1000 100");
  auto answer = std::async(std::launch::async, [&] { return paged_->hear(); });
  // The kernel is asked what was written when most of it has already been written and is about to leave.
  for (std::uint64_t next = 0; answer.wait_for(0s) != std::future_status::ready;) {
    if (pager_->figures().table.paged_out < next) continue;
    next = pager_->figures().table.paged_out + local;
    ASSERT_TRUE(pager_->begin_save(true));
    ASSERT_TRUE(pager_->save_round([](PageNumber, const std::byte*) { return Status{}; }));
    pager_->end_save(false);
  }
  expect_right(answer.get());
  EXPECT_GT(said_unchanged(at_cut), 0u);
}

TEST_F(PagerLiveTest, TheProcessEndsWithItsPager) {
  auto paged = Paged::start(1);
  ASSERT_TRUE(paged);
  { const GuestMemory gone = std::move(paged->memory()); }
  const auto ended = paged->process().wait(hang);
  ASSERT_TRUE(ended && *ended);
  EXPECT_EQ((*ended)->text(), "exit status 97");
}

}  // namespace
}  // namespace yado::pager
