#include "os/process.hpp"

#include <csignal>

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/testing.hpp"
#include "os/file.hpp"

namespace yado::os {
namespace {


Spawn shell(const std::string& command) {
  Spawn options;
  options.arguments = {"/bin/sh", "-c", command};
  options.environment = {"KEY=value", "PATH=/usr/bin:/bin"};
  return options;
}

TEST(ProcessTest, AProgramThatIsMissingIsAnErrorOfTheSpawn) {
  Spawn options;
  options.arguments = {"/no/such/program"};
  const auto process = spawn(options);
  ASSERT_FALSE(process);
  EXPECT_EQ(process.error().code, Errc::not_found);
  EXPECT_NE(process.error().message.find("/no/such/program"), std::string::npos);
}

TEST(ProcessTest, AnErrorOfThePreparationIsTheErrorOfTheSpawn) {
  Spawn options = shell("true");
  options.in_child = [] { return Status(fail(Errc::conflict, "not today")); };
  const auto process = spawn(options);
  ASSERT_FALSE(process);
  EXPECT_EQ(process.error().code, Errc::conflict);
  EXPECT_NE(process.error().message.find("not today"), std::string::npos);
}

TEST(ProcessTest, DescriptorsAreInTheirPlacesAndNothingElseIsInherited) {
  auto pipe = make_pipe();
  ASSERT_OK(pipe);
  Spawn options = shell("echo $KEY >&7; ls /proc/self/fd | wc -l >&7");
  options.descriptors = {{pipe->write.get(), 7}};
  auto process = spawn(options);
  ASSERT_OK(process);
  pipe->write.reset();
  const auto ended = process->wait(10s);
  ASSERT_OK(ended);
  ASSERT_TRUE(ended->has_value() && (*ended)->success());
  char text[64]{};
  EXPECT_GT(::read(pipe->read.get(), text, sizeof text - 1), 0);
  // 0, 1, 2, 7 and the directory that ls reads (its output is the pipe to wc).
  EXPECT_STREQ(text, "value\n5\n");
}

TEST(ProcessTest, DestructionKillsTheWholeGroup) {
  auto pipe = make_pipe();
  ASSERT_OK(pipe);
  {
    Spawn options = shell("sleep 1000 & echo; wait");
    options.standard_output = pipe->write.get();
    auto process = spawn(options);
    ASSERT_OK(process);
    pipe->write.reset();
    char byte;
    EXPECT_EQ(::read(pipe->read.get(), &byte, 1), 1);
  }
  // End of file: nobody holds the other end, the grandchild neither.
  const auto ended = readable_within(pipe->read.get(), 10s);
  ASSERT_OK(ended);
  EXPECT_TRUE(*ended);
  char byte;
  EXPECT_EQ(::read(pipe->read.get(), &byte, 1), 0);
}

TEST(ProcessTest, TheWayOfTheEndIsKept) {
  auto exits = spawn(shell("exit 3"));
  ASSERT_OK(exits);
  EXPECT_EQ(*exits->wait(10s), (ExitStatus{3, 0}));
  auto dies = spawn(shell("kill -TERM $$"));
  ASSERT_OK(dies);
  EXPECT_EQ(*dies->wait(10s), (ExitStatus{0, SIGTERM}));
  auto lasts = spawn(shell("exec sleep 1000"));
  ASSERT_OK(lasts);
  EXPECT_EQ(*lasts->wait(10ms), std::nullopt);
}

}  // namespace
}  // namespace yado::os
