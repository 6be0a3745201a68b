#include "transfer/transfer.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <fstream>
#include <future>
#include <thread>

#include "image/checksum.hpp"
#include "image/page_testing.hpp"
#include "image/temporary_directory.hpp"
#include "os/file.hpp"
#include "transfer/blocking.hpp"
#include "transfer/target.hpp"
#include "wire/run.hpp"

namespace yado::transfer {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;

constexpr nanoseconds patience = 20s;  // never reached unless something hangs
const ImageId id("site-img.3");

/// Two agents: h1 has an image and serves it by `handler`, h2 pulls it over mutual TLS.
class TransferTest : public ::testing::Test {
 protected:
  TransferTest() {
    auto authority = wire::Authority::open_or_create(directory_.path() / "ca");
    YADO_CHECK(authority, "authority: {}", authority.error().message);
    authority_ = std::move(*authority);
    there_ = open_store("there");
    here_ = open_store("here");
    handler_ = [this](const wire::Request& request, wire::Responder& responder) {
      return serve(*there_, pool_.get_executor(), request, responder);
    };
    auto outer = [this](const wire::Request& request, wire::Responder& responder) {
      ++requests_;
      return handler_(request, responder);
    };
    server_ = std::make_unique<wire::Server>(io_, outer, wire::Server::Limits{});
    auto port = server_->listen_tls("127.0.0.1", 0, identity("agent:h1"));
    YADO_CHECK(port, "listen: {}", port.error().message);
    port_ = *port;
    client_ = connect("agent:h2");
  }
  ~TransferTest() override {
    server_->stop();
    client_.reset();
    io_.restart();
    io_.poll();
    pool_.join();
  }

  wire::Identity identity(const std::string& name) const {
    auto issued = authority_->issue(name);
    YADO_CHECK(issued, "issue: {}", issued.error().message);
    return *issued;
  }
  std::optional<wire::Client> connect(const std::string& name) {
    auto client = wire::Client::tls(io_, "127.0.0.1", port_, identity(name), "agent:h1");
    YADO_CHECK(client, "client: {}", client.error().message);
    return std::move(*client);
  }
  std::optional<image::Store> open_store(const char* name) const {
    auto store = image::Store::open(directory_.path() / name);
    YADO_CHECK(store, "store: {}", store.error().message);
    return std::move(*store);
  }

  void make_image() {
    auto draft = there_->begin(id);
    ASSERT_TRUE(draft);
    const fs::path criu = *draft->part_directory("criu"), pages = *draft->part_directory("pages");
    image::put_file(criu / "core-1.img", "hello");
    image::put_file(criu / "deep er/%41.img", "odd name");
    image::put_file(criu / "empty", "");
    std::string memory(3 * piece_bytes + 17, '\0');
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<char>(i * i >> 7);
    image::put_file(pages / "pages-1.img", memory);
    image::put_file(pages / "one-piece", std::string(piece_bytes, 'p'));
    const image::Manifest manifest{
        .id = id,
        .workload = WorkloadId("site"),
        .parts = {{image::PartType::criu, "criu", {}}, {image::PartType::pages, "pages", {}}},
        .properties = {{"pipe", "pipe:[42]"}}};
    auto committed = draft->commit(manifest);
    ASSERT_TRUE(committed) << committed.error().message;
  }

  /// 8 MiB, of which 64 KiB at 1 MiB and 3 MiB at 4 MiB are data; and pages, every second extent of the log a hole.
  void make_sparse_image() {
    auto draft = there_->begin(id);
    ASSERT_TRUE(draft);
    const fs::path disk = *draft->part_directory("disk") / "layer";
    image::put_file(disk, "");
    fs::resize_file(disk, 8 << 20);
    std::fstream file(disk, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(1 << 20).write(std::string(64 << 10, 'x').data(), 64 << 10);
    file.seekp(4 << 20).write(std::string(3 << 20, 'y').data(), 3 << 20);
    file.close();
    auto writer =
        image::PageWriter::create(*draft->part_directory("memory"), {.guest_pages = 2048, .cut = image::cut_number(1)});
    ASSERT_TRUE(writer) << writer.error().text();
    image::PageAppender appender = writer->appender();
    for (std::uint32_t round = 0; round < 2; ++round)
      for (std::uint64_t page = 0; page < 2048; ++page)
        if (round == 0 || page / 256 % 2 == 0)
          ASSERT_OK(
              appender.put(image::PageNumber{page}, image::page_of(page + 3000 * round + 1), image::Round{round}));
    ASSERT_OK(appender.flush());
    ASSERT_OK(writer->finish(image::all_pages(2048)));
    ASSERT_OK(draft->commit({.id = id,
                             .workload = WorkloadId("vm"),
                             .parts = {{image::PartType::disk, "disk", {}}, {image::PartType::pages, "memory", {}}}}));
  }
  fs::path disk_of(const image::Store& store) const { return store.part_directory(id, "disk") / "layer"; }
  fs::path log_of(const image::Store& store) const { return store.part_directory(id, "memory") / "pages.log"; }

  Result<image::Manifest> pull_it() {
    return wire::run(io_, pull(*here_, pool_.get_executor(), id, *client_, patience,
                               [this](Progress progress) { progress_.push_back(progress); }));
  }

  /// The error of a pull that must fail, and that nothing is left of it.
  Error pull_error() {
    auto pulled = pull_it();
    if (pulled) return {Errc::internal, "(pulled)"};
    std::vector<std::string> left;
    for (const auto& entry : fs::directory_iterator(here_->root())) left.push_back(entry.path().filename());
    EXPECT_EQ(left, std::vector<std::string>{".lock"});
    return pulled.error();
  }

  Result<wire::Response> get(wire::Client& client, std::string target, std::string range = {}) {
    wire::Request request;
    request.target = std::move(target);
    if (!range.empty()) request.headers.emplace_back("range", std::move(range));
    return wire::run(io_, client.call(std::move(request), patience));
  }

  image::TemporaryDirectory directory_;
  std::optional<wire::Authority> authority_;
  std::optional<image::Store> there_, here_;
  asio::thread_pool pool_{2};
  asio::io_context io_;
  wire::Server::Handler handler_;
  int requests_ = 0;
  std::unique_ptr<wire::Server> server_;
  std::uint16_t port_ = 0;
  std::optional<wire::Client> client_;
  std::vector<Progress> progress_;
};

TEST_F(TransferTest, APulledImageIsTheSameImage) {
  make_image();
  auto pulled = pull_it();
  ASSERT_TRUE(pulled) << pulled.error().message;
  EXPECT_EQ(*pulled, *there_->read(id));
  EXPECT_EQ(*here_->read(id), *pulled);
  EXPECT_TRUE(here_->verify(id));
  ASSERT_FALSE(progress_.empty());
  EXPECT_TRUE(std::ranges::is_sorted(progress_, {}, &Progress::bytes));
  EXPECT_EQ(progress_.back().bytes, pulled->bytes());
  EXPECT_EQ(progress_.front().of, pulled->bytes());
}

TEST_F(TransferTest, ACopyKeepsToItsPace) {
  constexpr double limit = 8 << 20;  // bytes a second
  make_image();
  const auto begun = std::chrono::steady_clock::now();
  auto next = begun;
  const Pace pace = [&](std::uint64_t bytes) {
    return next += std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(static_cast<double>(bytes) / limit));
  };
  auto pulled = wire::run(io_, pull(*here_, pool_.get_executor(), id, *client_, patience, {}, pace));
  ASSERT_TRUE(pulled) << pulled.error().message;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  ASSERT_GT(pulled->bytes(), 4u * piece_bytes) << "too little to tell";
  EXPECT_LE(static_cast<double>(pulled->bytes()) / took.count(), limit);
  EXPECT_TRUE(here_->verify(id));
}

TEST_F(TransferTest, ABitOfAFile) {
  make_sparse_image();
  const auto bytes = [&](std::uint64_t offset, std::uint64_t count) { return wire::run(io_, pull_bytes(id, "disk", "layer", offset, count, *client_, patience)); };
  EXPECT_EQ(*bytes((1 << 20) - 2, 4), std::string("\0\0xx", 4)) << "a hole is zeros";
  EXPECT_EQ(bytes((8 << 20) - 2, 4).error().code, Errc::corrupt);
  EXPECT_EQ(bytes(8 << 20, 4).error().code, Errc::corrupt);
  EXPECT_EQ(wire::run(io_, pull_bytes(id, "disk", "other", 0, 4, *client_, patience)).error().code, Errc::not_found);
}

TEST_F(TransferTest, HolesArriveAsHoles) {
  make_sparse_image();
  const wire::Server::Handler honest = handler_;
  handler_ = [&](const wire::Request& request, wire::Responder& responder) -> asio::awaitable<void> {
    EXPECT_TRUE(request.target.ends_with("manifest") || wire::find(request.headers, "x-yado-holes") == "skip");
    co_return co_await honest(request, responder);
  };
  auto pulled = pull_it();
  ASSERT_TRUE(pulled) << pulled.error().message;
  ASSERT_OK(here_->verify(id));
  EXPECT_EQ(image::read_file(disk_of(*here_)), image::read_file(disk_of(*there_)));
  for (const image::Store* store : {&*there_, &*here_}) {
    EXPECT_LE(image::allocated_bytes(disk_of(*store)), (3U << 20) + (128U << 10));
    EXPECT_LE(image::allocated_bytes(log_of(*store)), (8U << 20) + (128U << 10));
  }
  EXPECT_EQ(fs::file_size(log_of(*here_)), 12U << 20);
  EXPECT_LE(pulled->data_bytes(), 12U << 20);
  EXPECT_LE(requests_, 20) << "holes cost no round trips";
  EXPECT_EQ(progress_.back().bytes, pulled->bytes());
}

TEST_F(TransferTest, AServerThatKnowsNothingOfHolesIsUnderstood) {
  make_sparse_image();
  const wire::Server::Handler honest = handler_;
  handler_ = [&](const wire::Request& request, wire::Responder& responder) -> asio::awaitable<void> {
    wire::Request older = request;
    std::erase_if(older.headers, [](const auto& header) { return header.first == "x-yado-holes"; });
    co_return co_await honest(older, responder);
  };
  ASSERT_OK(pull_it());
  ASSERT_OK(here_->verify(id));
}

TEST_F(TransferTest, ManySmallHolesAreSkippedToo) {
  auto draft = there_->begin(id);
  ASSERT_TRUE(draft);
  const fs::path file = *draft->part_directory("disk") / "layer";
  image::put_file(file, "");
  constexpr int file_pages = 3 * max_data_ranges;  // more than one answer names
  fs::resize_file(file, file_pages * 4096);
  std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
  for (int page = 1; page < file_pages; page += 2) stream.seekp(page * 4096).write(std::string(4096, 'x').data(), 4096);
  stream.close();
  ASSERT_OK(draft->commit({.id = id, .workload = WorkloadId("vm"), .parts = {{image::PartType::disk, "disk", {}}}}));
  ASSERT_OK(pull_it());
  EXPECT_EQ(image::read_file(disk_of(*here_)), image::read_file(disk_of(*there_)));
}

TEST_F(TransferTest, AHoleWhereThereWasDataIsCorrupt) {
  make_sparse_image();
  for (const fs::path& damaged : {disk_of(*there_), log_of(*there_)}) {
    const std::string before = image::read_file(damaged);
    const os::Fd file = std::move(*os::open_path(damaged, O_RDWR));
    ASSERT_EQ(::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 << 20, 4096), 0);
    const Error error = pull_error();
    EXPECT_EQ(error.code, Errc::corrupt);
    EXPECT_NE(error.message.find("checksum differs"), std::string::npos) << error.message;
    image::put_file(damaged, before);
  }
}

TEST_F(TransferTest, OnlyTheIndicesCanBePulled) {
  make_sparse_image();
  auto kept = wire::run(io_, pull_indices(*here_, pool_.get_executor(), id, *client_, patience));
  ASSERT_TRUE(kept) << kept.error().text();
  EXPECT_EQ(here_->read(id).error().code, Errc::not_found) << "it is no image";
  const auto held = here_->find(id);
  ASSERT_TRUE(held) << held.error().text();
  EXPECT_FALSE(held->whole);
  EXPECT_EQ(held->manifest, *there_->read(id));
  EXPECT_EQ(image::read_file(held->directory / "memory/pages.index"),
            image::read_file(there_->part_directory(id, "memory") / "pages.index"));
  EXPECT_EQ(requests_, 2);
}

TEST_F(TransferTest, WhatIsHereAlreadyIsNotPulledAgain) {
  make_image();
  ASSERT_TRUE(pull_it());
  requests_ = 0;
  EXPECT_EQ(pull_it().error().code, Errc::already_exists);
  EXPECT_EQ(requests_, 1) << "only the manifest";
  EXPECT_TRUE(here_->verify(id));
}

TEST_F(TransferTest, WhatIsNotThereIsNotFound) {
  const Error error = pull_error();
  EXPECT_EQ(error.code, Errc::not_found);
  EXPECT_EQ(error.message, "pull image site-img.3: the other agent answered 404: there is no image site-img.3");
}

TEST_F(TransferTest, OnlyAgentsAreServed) {
  make_image();
  for (const char* name : {"gate:g1", "control:c1", "agentx:h1"}) {
    client_ = connect(name);
    EXPECT_EQ(pull_error().code, Errc::permission) << name;
    EXPECT_EQ(get(*client_, file_target(id, "criu", "core-1.img"))->status, 403) << name;
  }
}

TEST_F(TransferTest, WholeFilesAndRangesAreServed) {
  make_image();
  auto whole = get(*client_, file_target(id, "criu", "core-1.img"));
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->status, 200);
  EXPECT_EQ(whole->body, "hello");
  auto empty = get(*client_, file_target(id, "criu", "empty"));
  ASSERT_TRUE(empty);
  EXPECT_EQ(empty->status, 200);
  EXPECT_EQ(empty->body, "");
  auto some = get(*client_, file_target(id, "criu", "core-1.img"), "bytes=1-3");
  ASSERT_TRUE(some);
  EXPECT_EQ(some->status, 206);
  EXPECT_EQ(some->body, "ell");
  EXPECT_EQ(wire::find(some->headers, "content-range"), "bytes 1-3/5");
  auto long_file = get(*client_, file_target(id, "pages", "pages-1.img"));
  ASSERT_TRUE(long_file);
  EXPECT_EQ(image::checksum_of(long_file->body), there_->read(id)->parts[1].files[1].xxh128);
}

TEST_F(TransferTest, WhatLeavesTheImageIsRefused) {
  make_image();
  image::put_file(there_->root() / "secret", "s");
  for (const char* path : {"../manifest.json", "../../secret", "/etc/passwd", "missing", "deep er"})
    EXPECT_EQ(get(*client_, file_target(id, "criu", path))->status, 404) << path;
  EXPECT_EQ(get(*client_, "/v1/images/site-img.3/parts/../x")->status, 404);
  EXPECT_EQ(get(*client_, "/v1/images/.lock/manifest")->status, 404);
  EXPECT_EQ(get(*client_, file_target(id, "criu", "core-1.img"), "bytes=5-6")->status, 416);
  wire::Request put{.method = "PUT", .target = manifest_target(id)};
  EXPECT_EQ(wire::run(io_, client_->call(std::move(put), patience))->status, 405);
}

// An other side that is broken or hostile.

TEST_F(TransferTest, AFileThatBecameShorterIsCorrupt) {
  make_image();
  fs::resize_file(there_->root() / "site-img.3/pages/pages-1.img", 2 * piece_bytes + 5);
  EXPECT_EQ(pull_error().code, Errc::corrupt);
  fs::resize_file(there_->root() / "site-img.3/pages/pages-1.img", piece_bytes);
  const Error error = pull_error();
  EXPECT_EQ(error.code, Errc::corrupt);
  EXPECT_EQ(error.message,
            "pull image site-img.3: part pages: pages-1.img: it is shorter there than its manifest says");
}

TEST_F(TransferTest, AFlippedBitIsCorrupt) {
  make_image();
  std::fstream damaged(there_->root() / "site-img.3/pages/pages-1.img",
                       std::ios::in | std::ios::out | std::ios::binary);
  damaged.seekp(static_cast<std::streamoff>(2 * piece_bytes));
  damaged.put('\x55').flush();
  const Error error = pull_error();
  EXPECT_EQ(error.code, Errc::corrupt);
  EXPECT_EQ(error.message, "pull image site-img.3: image site-img.3: part pages: pages-1.img: checksum differs");
}

TEST_F(TransferTest, AFileThatIsGoneIsNotFound) {
  make_image();
  fs::remove(there_->root() / "site-img.3/pages/pages-1.img");
  EXPECT_EQ(pull_error().code, Errc::not_found);
}

TEST_F(TransferTest, AnAnswerOfAnotherLengthIsCorrupt) {
  make_image();
  const wire::Server::Handler honest = handler_;
  for (const std::size_t bytes : {0, 4, 6}) {
    handler_ = [&](const wire::Request& request, wire::Responder& responder) -> asio::awaitable<void> {
      if (!request.target.ends_with("core-1.img")) co_return co_await honest(request, responder);
      wire::Response lie{206, {}, std::string(bytes, 'h')};
      (void)co_await responder.respond(std::move(lie));
    };
    const Error error = pull_error();
    EXPECT_EQ(error.code, Errc::corrupt) << bytes;
    EXPECT_NE(error.message.find(fmt::format("{} bytes came instead of 5", bytes)), std::string::npos) << error.message;
  }
}

TEST_F(TransferTest, DataThatLiesNotWhereItMayIsCorrupt) {
  make_image();
  const wire::Server::Handler honest = handler_;
  std::string covered, data, body;
  handler_ = [&](const wire::Request& request, wire::Responder& responder) -> asio::awaitable<void> {
    if (!request.target.ends_with("core-1.img")) co_return co_await honest(request, responder);
    wire::Response lie{206, {{"content-range", covered}, {"x-yado-data", data}}, body};
    (void)co_await responder.respond(std::move(lie));
  };
  struct Lie {
    const char *covered, *data, *body;
  };
  for (const Lie& lie : std::initializer_list<Lie>{{"bytes 0-5/6", "0-5", "hello!"},      // behind the end
                                                   {"bytes 0-4/5", "0-9", "hellohello"},  // outside of what it covers
                                                   {"bytes 0-4/5", "0-1,1-4", "hello!"},  // twice
                                                   {"bytes 0-4/5", "0-2", "hello"},       // more than it says
                                                   {"bytes 0-4/5", "0-4", "hell"},        // less
                                                   {"bytes 1-4/5", "1-4", "ello"},        // not from where it was asked
                                                   {"bytes 0-4/5", "none", ""},           // a hole that is none
                                                   {"", "0-4", "hello"},
                                                   {"bytes 0-4/5", ",", ""}}) {
    covered = lie.covered;
    data = lie.data;
    body = lie.body;
    const Error error = pull_error();
    EXPECT_EQ(error.code, Errc::corrupt) << covered << " " << data << ": " << error.message;
  }
  covered = "bytes 0-4/5", data = "0-1,2-4", body = "hello";
  EXPECT_TRUE(pull_it());
}

TEST_F(TransferTest, AnAnswerThatIsCutIsUnavailable) {
  make_image();
  const wire::Server::Handler honest = handler_;
  handler_ = [&](const wire::Request& request, wire::Responder& responder) -> asio::awaitable<void> {
    if (!request.target.ends_with("pages-1.img") || wire::find(request.headers, "range").starts_with("bytes=0-"))
      co_return co_await honest(request, responder);
    wire::Headers headers{{"content-length", std::to_string(piece_bytes)}};
    (void)co_await responder.start(206, std::move(headers));
    const std::string half(piece_bytes / 2, 'x');
    (void)co_await responder.write(half);
    responder.abort();
  };
  EXPECT_EQ(pull_error().code, Errc::unavailable);
}

TEST_F(TransferTest, AServerThatGoesAwayIsAnError) {
  make_image();
  const wire::Server::Handler honest = handler_;
  handler_ = [&](const wire::Request& request, wire::Responder& responder) -> asio::awaitable<void> {
    if (requests_ == 4) server_->stop();
    co_return co_await honest(request, responder);
  };
  EXPECT_TRUE(retryable(pull_error().code));
}

TEST_F(TransferTest, AForgedManifestIsCorruptOrFindsNoRoom) {
  make_image();
  const image::Manifest honest = *there_->read(id);
  image::Manifest manifest = honest;
  handler_ = [&](const wire::Request&, wire::Responder& responder) -> asio::awaitable<void> {
    wire::Response forged{200, {}, image::to_json(manifest)};
    (void)co_await responder.respond(std::move(forged));
  };
  manifest.id = ImageId("other");
  EXPECT_EQ(pull_error().message, "pull image site-img.3: its manifest is that of other");
  manifest = honest;
  manifest.parts[0].files[0].path = "../../../etc/x";
  EXPECT_EQ(pull_error().code, Errc::corrupt);
  manifest = honest;
  manifest.parts[0].files[0].bytes = manifest.parts[0].files[1].bytes = UINT64_MAX / 2 + 1;
  EXPECT_EQ(pull_error().code, Errc::no_space);
}

TEST_F(TransferTest, AFileThatDoesNotStandInTheManifestOfTheCopyIsNotTaken) {
  make_image();
  image::put_file(there_->root() / "site-img.3/criu/extra", "x");
  EXPECT_TRUE(pull_it());
  EXPECT_TRUE(here_->verify(id));
  EXPECT_FALSE(fs::exists(here_->root() / "site-img.3/criu/extra"));
}

// The io thread answers while a disk is slow: the pool's only thread is held, and other coroutines go on.
TEST_F(TransferTest, ASlowDiskHoldsNobodyElse) {
  asio::thread_pool slow(1);
  std::promise<void> release;
  asio::post(slow, [held = release.get_future().share()] { held.wait(); });
  std::function<Result<std::thread::id>()> work = []() -> Result<std::thread::id> {
    return std::this_thread::get_id();
  };
  bool other_ran = false;
  auto other = [&]() -> asio::awaitable<void> {
    other_ran = true;
    release.set_value();  // only now can the disk's work begin
    co_return;
  };
  asio::co_spawn(io_, other(), asio::detached);
  auto worker = wire::run(io_, blocking(slow.get_executor(), std::move(work)));
  EXPECT_TRUE(other_ran);
  ASSERT_TRUE(worker);
  EXPECT_NE(*worker, std::this_thread::get_id());
  slow.join();
}

TEST_F(TransferTest, APullThatIsAbandonedLeavesNothing) {
  make_image();
  {
    asio::io_context other;
    auto client = wire::Client::tls(other, "127.0.0.1", port_, identity("agent:h2"), "agent:h1");
    ASSERT_TRUE(client);
    bool begun = false;
    asio::co_spawn(other, pull(*here_, pool_.get_executor(), id, *client, patience, [&](Progress) { begun = true; }),
                   asio::detached);
    while (!begun) {
      other.poll();
      io_.poll();
    }
    pool_.join();
  }  // the io_context and every coroutine in it are destroyed here, in the middle
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(here_->root())) left.push_back(entry.path().filename());
  EXPECT_EQ(left, std::vector<std::string>{".lock"});
}

}  // namespace
}  // namespace yado::transfer
