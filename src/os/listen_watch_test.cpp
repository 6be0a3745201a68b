#include "os/listen_watch.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/time.hpp"
#include "os/netns.hpp"

namespace yado::os {
namespace {

bool told(const ListenWatch& watch, int limit_ms) {
  std::vector<pollfd> wanted;
  for (const Fd& event : watch.descriptors()) wanted.push_back({event.get(), POLLIN, 0});
  return ::poll(wanted.data(), wanted.size(), limit_ms) > 0;
}

Result<Fd> listen_on(const Netns& netns, std::uint16_t port) {
  return run_in(netns, [&]() -> Result<Fd> {
    Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return fail_errno("bind");
    if (::listen(socket.get(), 1) != 0) return fail_errno("listen");
    return socket;
  });
}

TEST(ListenWatchTest, TellsOfItsPortOnceAndOfNoOther) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root: tracepoints are watched";
  const auto watch = ListenWatch::open(18'431);
  if (!watch) GTEST_SKIP() << "needs perf events and tracefs: " << watch.error().text();
  const auto netns = Netns::create();
  ASSERT_TRUE(netns.has_value());
  EXPECT_FALSE(told(*watch, 0));
  const auto other = listen_on(*netns, 18'432);
  ASSERT_TRUE(other.has_value()) << other.error().text();
  EXPECT_FALSE(told(*watch, 100));
  const auto wanted = listen_on(*netns, 18'431);
  ASSERT_TRUE(wanted.has_value()) << wanted.error().text();
  EXPECT_TRUE(told(*watch, 10'000));
  EXPECT_FALSE(told(*watch, 0));
}

}  // namespace
}  // namespace yado::os
