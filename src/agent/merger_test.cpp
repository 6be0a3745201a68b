// Merging between real agents' stores: two hosts, each with its server, over mutual TLS on loopback.

#include "agent/merger.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>

#include "base/units.hpp"
#include "image/page_testing.hpp"
#include "image/temporary_directory.hpp"
#include "os/clock.hpp"
#include "transfer/transfer.hpp"
#include "wire/run.hpp"
#include "wire/server.hpp"

namespace yado::agent {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using image::MemoryModel;
using image::PageSet;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using image::operator""_page;
using image::operator""_round;

constexpr std::uint64_t guest_pages = 1024;
const WorkloadId vm("vm");

image::Store store_in(const fs::path& directory) {
  auto store = image::Store::open(directory);
  YADO_CHECK(store, "store: {}", store.error().text());
  return std::move(*store);
}

/// What one host has.
struct Host {
  Host(asio::io_context& io, const fs::path& directory, const wire::Identity& who, std::uint64_t bytes_per_second)
      : identity(who), images(store_in(directory), workers), pace(bytes_per_second), merger({io, images, identity, pace}), server(io, [this](const wire::Request& request, wire::Responder& responder) {
          return transfer::serve(images.store(), workers.executor(), request, responder);
        }, wire::Server::Limits{}) {
    const auto port = server.listen_tls("127.0.0.1", 0, identity);
    YADO_CHECK(port, "listen: {}", port.error().message);
    endpoint = {"127.0.0.1", *port};
  }
  const image::Store& store() const { return images.store(); }

  wire::Identity identity;
  Workers workers{2};
  Images images;
  ImagePace pace;
  Merger merger;
  wire::Server server;
  Endpoint endpoint;
};

struct Wanted {
  std::string id;
  int cut = 1;
  std::string base;  ///< of the cut before
  PageSet owned;
  MemoryModel puts;
  std::string member_of = {};
  std::vector<image::Member> members = {};
};

image::Manifest make(const image::Store& store, const Wanted& wanted) {
  const auto must = [](auto result) {
    YADO_CHECK(result, "{}", result.error().text());
    return std::move(*result);
  };
  image::Draft draft = must(store.begin(ImageId(wanted.id)));
  image::PageWriter writer = must(image::PageWriter::create(
      must(draft.part_directory("memory")),
      {.guest_pages = guest_pages, .cut = image::cut_number(wanted.cut), .base_cut = wanted.base.empty() ? image::CutId() : image::cut_number(wanted.cut - 1)}));
  image::PageAppender appender = writer.appender();
  for (const auto& [number, contents] : wanted.puts) YADO_CHECK(appender.put(image::PageNumber{number}, image::page_of(contents), 0_round), "put");
  YADO_CHECK(appender.flush(), "flush");
  must(writer.finish(wanted.owned));
  image::Manifest manifest{.id = ImageId(wanted.id), .workload = vm, .created_wall_ms = wanted.cut, .parts = {{image::PartType::pages, "memory", {}}}, .members = wanted.members};
  if (!wanted.base.empty()) manifest.base = ImageId(wanted.base);
  if (!wanted.member_of.empty()) manifest.member_of = ImageId(wanted.member_of);
  return must(draft.commit(std::move(manifest)));
}

MemoryModel numbered(std::uint64_t from, std::uint64_t to) {
  MemoryModel model;
  for (std::uint64_t number = from; number < to; ++number) model[number] = number + 1;
  return model;
}

class AgentMergerTest : public ::testing::Test {
 protected:
  AgentMergerTest() {
    auto authority = wire::Authority::open_or_create(directory_.path() / "ca");
    YADO_CHECK(authority, "authority: {}", authority.error().message);
    authority_ = std::move(*authority);
  }
  ~AgentMergerTest() override { end(); }
  void end() {
    for (Host* host : {h1_.get(), h2_.get()})
      if (host) host->server.stop();
    io_.restart();
    io_.poll();
    h1_.reset();
    h2_.reset();
  }

  /// Three cuts of a guest on two hosts. Pages 512 to 599 moved to the main host after the first, 500 to 511 to the other one after the second: nobody
  /// wrote them, so they lie in logs of the host that they came from.
  void make_chain() {
    const fs::path main = directory_.path() / "h1", other = directory_.path() / "h2";
    {
      const image::Store first = store_in(main), second = store_in(other);
      const auto set = [&](int number, const PageSet& main_owned, const MemoryModel& main_puts, const PageSet& other_owned, const MemoryModel& other_puts) {
        const std::string id = fmt::format("vm-img.{}", number), base = number == 1 ? "" : fmt::format("vm-img.{}", number - 1);
        const auto member = make(second, {.id = id + ".h2", .cut = number, .base = base, .owned = other_owned, .puts = other_puts, .member_of = id});
        make(first, {.id = id, .cut = number, .base = base, .owned = main_owned, .puts = main_puts, .members = {{member.id, HostId("h2"), image::checksum_of_manifest(member)}}});
      };
      set(1, {{0_page, 512}}, numbered(0, 512), {{512_page, 512}}, numbered(512, 1024));
      set(2, {{0_page, 600}}, {{2, 2002}, {520, 2520}}, {{600_page, 424}}, {{700, 2700}});
      set(3, {{0_page, 500}, {512_page, 88}}, {{3, 3003}}, {{500_page, 12}, {600_page, 424}}, {{505, 3505}, {900, 0}});
    }
    model_ = numbered(0, guest_pages);
    for (const auto& [page, contents] : MemoryModel{{2, 2002}, {520, 2520}, {700, 2700}, {3, 3003}, {505, 3505}, {900, 0}}) model_[page] = contents;
  }
  void start(std::uint64_t bytes_per_second = 0) {
    end();
    h1_ = std::make_unique<Host>(io_, directory_.path() / "h1", *authority_->issue("agent:h1"), bytes_per_second);
    h2_ = std::make_unique<Host>(io_, directory_.path() / "h2", *authority_->issue("agent:h2"), bytes_per_second);
  }

  MergeCall on_h1(bool bases = true) const {
    return {vm, Epoch::make(1, 0), newest_, others(bases, ".h2", h2_->endpoint)};
  }
  MergeCall on_h2(bool bases = true) const { return {vm, Epoch::make(1, 0), newest_, others(bases, "", h1_->endpoint)}; }
  static std::vector<PullCall::Member> others(bool bases, const std::string& suffix, const Endpoint& from) {
    std::vector<PullCall::Member> all;
    for (int number = bases ? 1 : 3; number <= 3; ++number) all.push_back({ImageId(fmt::format("vm-img.{}{}", number, suffix)), from});
    return all;
  }
  Result<CallReply> merge(Host& host, MergeCall call) { return wire::run(io_, host.merger.run(std::move(call))); }

  void until(const std::function<bool()>& done) {
    io_.restart();
    while (!done()) YADO_CHECK(io_.run_one() > 0, "it waits for something that cannot happen any more");
  }

  /// The share alone, without any base.
  void expect_alone(const Host& host, const std::string& id, const PageSet& owned) {
    ASSERT_OK(host.store().verify(ImageId(id)));
    auto part = image::PagePart::open(host.store().part_directory(ImageId(id), "memory"));
    ASSERT_TRUE(part) << part.error().text();
    ASSERT_TRUE(part->index().self_contained());
    ASSERT_EQ(part->index().description().owned, owned);
    image::Page page;
    for (const image::PageRange& range : owned)
      for (std::uint64_t number = range.begin(); number < range.end(); ++number) {
        ASSERT_OK(part->read(image::PageNumber{number}, page));
        ASSERT_EQ(page, image::page_of(model_[number])) << number;
      }
  }
  std::vector<std::string> unusual(const Host& host) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(host.store().root()))
      if (const std::string name = entry.path().filename(); name.starts_with(".") && name != ".lock" && !name.starts_with(".indices-vm-img.3.")) names.push_back(name);
    return names;
  }

  image::TemporaryDirectory directory_;
  std::optional<wire::Authority> authority_;
  asio::io_context io_;
  std::unique_ptr<Host> h1_, h2_;
  MemoryModel model_;
  const ImageId newest_{"vm-img.3"};
  const PageSet main_pages_{{0_page, 500}, {512_page, 88}}, other_pages_{{500_page, 12}, {600_page, 424}};
};

TEST_F(AgentMergerTest, EveryHostMergesItsShareAndThenNobodyNeedsTheBases) {
  make_chain();
  start();
  const auto main = merge(*h1_, on_h1());
  ASSERT_TRUE(main) << main.error().text();
  ASSERT_TRUE(main->image);
  EXPECT_TRUE(main->image->merged);
  EXPECT_EQ(main->image->base, ImageId("vm-img.2")) << "the other share is still a delta";
  ASSERT_OK(merge(*h2_, on_h2()));
  expect_alone(*h1_, "vm-img.3", main_pages_);
  expect_alone(*h2_, "vm-img.3.h2", other_pages_);
  EXPECT_THAT(unusual(*h2_), IsEmpty()) << "the main host's indices were only needed to merge";

  // Who was last knows that nothing is a delta any more, the other one learns it.
  EXPECT_EQ(h2_->images.all().at(ImageId("vm-img.3.h2")).base, std::nullopt);
  const auto told = merge(*h1_, on_h1(false));
  ASSERT_TRUE(told) << told.error().text();
  EXPECT_EQ(told->image->base, std::nullopt);
  // The bases go, and the image is still what it was.
  for (const char* id : {"vm-img.2", "vm-img.1"}) {
    ASSERT_OK(wire::run(io_, h1_->images.remove(ImageId(id))));
    ASSERT_OK(wire::run(io_, h2_->images.remove(ImageId(id + std::string(".h2")))));
  }
  expect_alone(*h1_, "vm-img.3", main_pages_);
  auto chain = image::load_chain(h1_->store(), newest_);
  ASSERT_TRUE(chain) << chain.error().text();
  EXPECT_EQ(chain->find(505_page).part->name(), "vm-img.3.h2/memory") << "where the other host's pages lie is known, too";
  // Nothing is left: a call that comes again says so.
  EXPECT_EQ(merge(*h1_, on_h1(false)).error().code, Errc::conflict);
}

TEST_F(AgentMergerTest, WithoutAHostThatHasAPageNothingChanges) {
  make_chain();
  start();
  MergeCall call = on_h1();
  h2_->server.stop();
  EXPECT_FALSE(merge(*h1_, call));
  // It dies after it has said where its pages lie.
  start();
  call = on_h1();
  fs::resize_file(h2_->store().part_directory(ImageId("vm-img.1.h2"), "memory") / "pages.log", 4096);
  const auto cut = merge(*h1_, call);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, Errc::corrupt);
  EXPECT_THAT(cut.error().message, HasSubstr("merge vm-img.3: merge image vm-img.3: vm-img.1.h2/memory")) << cut.error().message;
  EXPECT_FALSE(h1_->images.all().at(newest_).stands_for);
  EXPECT_EQ(image::load_chain(h1_->store(), newest_)->parts().size(), 6u);
  EXPECT_EQ(std::ranges::count_if(unusual(*h1_), [](const std::string& name) { return !name.starts_with(".indices-"); }), 0);
}

TEST_F(AgentMergerTest, AHostThatLiesIsFoundOut) {
  make_chain();
  start();
  image::flip_bit(h2_->store().part_directory(ImageId("vm-img.1.h2"), "memory") / "pages.log", 5, 3);  // page 512, which moved
  const auto lied = merge(*h1_, on_h1());
  ASSERT_FALSE(lied);
  EXPECT_EQ(lied.error().code, Errc::corrupt);
  EXPECT_THAT(lied.error().message, HasSubstr("page 512 (pages.log offset 0): checksum differs"));
  EXPECT_FALSE(h1_->images.all().at(newest_).stands_for);
}

TEST_F(AgentMergerTest, WhoeverWantsTheImageDoesNotWaitForTheMerge) {
  make_chain();
  start(1);  // after its first MiB a merge waits for years
  std::optional<Result<CallReply>> ended;
  asio::co_spawn(io_, h1_->merger.run(on_h1()), [&](std::exception_ptr, Result<CallReply> reply) { ended = std::move(reply); });
  until([&] { return h1_->images.changing(newest_); });
  EXPECT_EQ(merge(*h1_, on_h1()).error().code, Errc::conflict) << "one at a time";
  const auto verified = wire::run(io_, h1_->images.verified(newest_));
  ASSERT_TRUE(verified) << verified.error().text();
  EXPECT_FALSE(verified->stands_for);
  until([&] { return ended.has_value(); });
  ASSERT_FALSE(*ended);
  EXPECT_EQ(ended->error().code, Errc::canceled) << ended->error().text();
  EXPECT_EQ(std::ranges::count_if(unusual(*h1_), [](const std::string& name) { return !name.starts_with(".indices-"); }), 0);
  // It may be removed as well.
  ended.reset();
  asio::co_spawn(io_, h1_->merger.run(on_h1()), [&](std::exception_ptr, Result<CallReply> reply) { ended = std::move(reply); });
  until([&] { return h1_->images.changing(newest_); });
  ASSERT_OK(wire::run(io_, h1_->images.remove(newest_)));
  until([&] { return ended.has_value(); });
  EXPECT_FALSE(*ended);
  EXPECT_FALSE(h1_->store().read(newest_));
}

TEST_F(AgentMergerTest, AnImageInUseIsNotTouched) {
  make_chain();
  start();
  {
    const auto use = h1_->images.in_use(vm);
    const auto refused = merge(*h1_, on_h1());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().message, "merge vm-img.3: image vm-img.3 is in use");
  }
  ASSERT_OK(merge(*h1_, on_h1()));
}

TEST_F(AgentMergerTest, AMergeKeepsToWhatTheHostGivesToItsBackground) {
  constexpr std::uint64_t limit = 8_MiB;
  make_chain();
  start(limit);
  const Instant begun = os::now();
  ASSERT_OK(merge(*h1_, on_h1()));
  const double seconds = to_ms(os::now() - begun) / 1000;
  const double bytes = static_cast<double>(fs::file_size(h1_->store().part_directory(newest_, "memory") / "pages.log"));
  ASSERT_GT(bytes, 2.0 * (1 << 20)) << "too little to tell";
  EXPECT_LT((bytes - (1 << 20)) / seconds, static_cast<double>(limit)) << "the last piece is not waited for";
}

/// The merging process is killed in the middle of it; the next one on the same store goes on.
TEST_F(AgentMergerTest, AProcessKilledWhileItMergesLeavesTheChainAsItWas) {
  make_chain();
  const fs::path root = directory_.path() / "h1";
  int halfway[2];
  ASSERT_EQ(::pipe(halfway), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    start(1);
    asio::co_spawn(io_, h1_->merger.run(on_h1()), [](std::exception_ptr, Result<CallReply>) { ::_exit(1); });
    for (;;) {
      io_.restart();
      io_.run_one_for(std::chrono::milliseconds(10));
      std::error_code ignored;
      for (const auto& entry : fs::directory_iterator(root))
        if (entry.path().filename().native().starts_with(".draft-vm-img.3-") && fs::file_size(entry.path() / "memory/pages.log", ignored) >= 1 << 20 && !ignored)
          (void)!::write(halfway[1], "", 1);
    }
  }
  ::close(halfway[1]);
  char byte;
  ASSERT_EQ(::read(halfway[0], &byte, 1), 1) << "it ended by itself";
  ::close(halfway[0]);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  bool draft = false;
  for (const auto& entry : fs::directory_iterator(root)) draft = draft || entry.path().filename().native().starts_with(".draft-vm-img.3-");
  EXPECT_TRUE(draft) << "it was not killed in the middle";

  start();
  EXPECT_FALSE(h1_->images.all().at(newest_).stands_for);
  ASSERT_OK(h1_->store().verify(newest_));
  ASSERT_OK(merge(*h1_, on_h1()));
  expect_alone(*h1_, "vm-img.3", main_pages_);
}

}  // namespace
}  // namespace yado::agent
