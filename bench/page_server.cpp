// yado-page-server-bench: what a memory server gives and takes over a unix socket and over TLS on loopback.
// Client and server share this machine's cores, so the rates are of both together.

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <vector>

#include "base/check.hpp"
#include "os/clock.hpp"
#include "pager/memory_server.hpp"
#include "pager/server_link.hpp"
#include "wire/run.hpp"

using namespace yado;
using namespace yado::pager;

namespace {

constexpr std::uint64_t pages = 64 * 1024;  // 256 MiB
constexpr std::uint32_t batch_pages = 64;
constexpr int under_way_most = 8;
constexpr int round_trips = 20'000;

class Bench {
 public:
  Bench(boost::asio::io_context& io, std::shared_ptr<ServerLink> link) : io_(io), link_(std::move(link)) {
    std::uint64_t word = 0x9e3779b97f4a7c15;
    for (std::size_t at = 0; at < content_->size(); at += 8) std::memcpy(content_->data() + at, &(word = word * 6364136223846793005 + 1), 8);
  }

  void run(std::string_view where) {
    const double put_rate = mebibytes_per_second([&](PageNumber first, auto done) {
      PutBatch batch;
      for (std::uint32_t i = 0; i < batch_pages; ++i) {
        batch.pages.push_back(first + i);
        batch.contents.push_back(content_->data() + std::size_t{i} * page_bytes);
      }
      batch.hold = content_;
      link_->put(std::move(batch), [done](const Status& status) {
        YADO_CHECK(status, "put: {}", status.error().text());
        done();
      });
    });
    const double get_rate = mebibytes_per_second([&](PageNumber first, auto done) {
      link_->get({{first, batch_pages}}, [done](const auto& answer) {
        YADO_CHECK(answer && answer->first.data.size() == std::size_t{batch_pages} * page_bytes, "get");
        done();
      });
    });
    std::vector<nanoseconds> times;
    for (int i = 0; i < round_trips; ++i) {
      const Instant begun = os::now();
      bool answered = false;
      link_->get({{static_cast<PageNumber>(i) * 7919 % pages, 1}}, [&](const auto& answer) { answered = answer.has_value(); });
      while (!answered) io_.run_one();
      times.push_back(os::now() - begun);
    }
    std::ranges::sort(times);
    const auto us = [&](double part) { return static_cast<double>(times[static_cast<std::size_t>(part * round_trips)].count()) / 1000; };
    fmt::print("{:5}  GET of 1 page: p50 {:6.1f} us, p99 {:6.1f} us   batches of {}: PUT {:5.0f} MiB/s, GET {:5.0f} MiB/s\n", where,
               us(0.5), us(0.99), batch_pages, put_rate, get_rate);
  }

 private:
  template <class Ask>
  double mebibytes_per_second(Ask ask) {
    int under_way = 0;
    const Instant begun = os::now();
    for (PageNumber first = 0; first < pages; first += batch_pages) {
      ++under_way;
      ask(first, [&under_way] { --under_way; });
      while (under_way >= under_way_most) io_.run_one();
    }
    while (under_way > 0) io_.run_one();
    return static_cast<double>(pages * page_bytes) / (1 << 20) / std::chrono::duration<double>(os::now() - begun).count();
  }

  boost::asio::io_context& io_;
  std::shared_ptr<ServerLink> link_;
  std::shared_ptr<std::vector<std::byte>> content_ = std::make_shared<std::vector<std::byte>>(std::size_t{batch_pages} * page_bytes);
};

template <class T>
T must(Result<T> result) {
  YADO_CHECK(result, "{}", result.error().text());
  return std::move(*result);
}

}  // namespace

int main() {
  std::string directory = (std::filesystem::temp_directory_path() / "yado-bench-XXXXXX").native();
  YADO_CHECK(::mkdtemp(directory.data()) != nullptr, "mkdtemp {}", directory);
  {
    const auto authority = must(wire::Authority::open_or_create(directory + "/ca"));
    const wire::Identity own = must(authority.issue("agent:h1"));
    MemoryServer server({.capacity_pages = 2 * pages});
    const Status listening = server.listen_unix(directory + "/server", 0600);
    YADO_CHECK(listening, "{}", listening.error().text());
    const std::uint16_t port = must(server.listen_tls("127.0.0.1", 0, must(authority.issue("agent:h2"))));
    boost::asio::io_context io;
    BlockPool blocks(channel_block_bytes);
    const auto bench = [&](std::string_view where, const ServerAddress& address, const wire::Identity* identity) {
      const Hello hello{.epoch = 1, .pages = pages, .quota_pages = pages, .session = std::string(where)};
      const auto link = must(ServerLink::make(io.get_executor(), blocks, address, {.hello = hello, .identity = identity}));
      must(wire::run(io, ServerLink::open(link)));
      io.restart();
      Bench(io, link).run(where);
      link->close();
    };
    bench("unix", {.unix_path = directory + "/server"}, nullptr);
    bench("tls", {.address = "127.0.0.1", .port = port, .expected_peer = "agent:h2"}, &own);
    io.restart();
    io.poll();
  }
  std::filesystem::remove_all(directory);
}
