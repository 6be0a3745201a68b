#include "os/netns.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace yado::os {
namespace {

TEST(NetnsTest, WhatIsNoNetworkNamespaceIsRefused) {
  EXPECT_EQ(Netns::open("/proc/self/ns/mnt").error().code, Errc::invalid_argument);
  EXPECT_EQ(Netns::open("/nonexistent").error().code, Errc::not_found);
}

TEST(NetnsTest, WithoutRootTheErrorSaysPermission) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const auto made = Netns::create();
    ::_exit(!made && made.error().code == Errc::permission ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(NetnsTest, RunInLeavesTheCallingThreadWhereItIs) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const auto other = Netns::create();
  ASSERT_TRUE(other) << other.error().text();
  const auto before = Netns::current()->inode();
  const auto inside = run_in(*other, [] { return Netns::current()->inode(); });
  EXPECT_EQ(*inside, *other->inode());
  EXPECT_EQ(*Netns::current()->inode(), *before);
  EXPECT_NE(*inside, *before);
}

TEST(NetnsTest, AnErrorInsideComesOut) {
  const auto here = Netns::current();
  ASSERT_TRUE(here) << here.error().text();
  const auto failed = run_in(*here, []() -> Status { return fail(Errc::conflict, "inside"); });
  // Entering any network namespace, one's own included, needs root.
  EXPECT_EQ(failed.error().code, ::geteuid() == 0 ? Errc::conflict : Errc::permission);
}

}  // namespace
}  // namespace yado::os
