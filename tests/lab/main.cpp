#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "lab_test.hpp"
#include "os/clock.hpp"

namespace yado::labtest {
bool long_run() {
  const char* value = std::getenv("YADO_LONG");
  return value && *value;
}

std::string missing_guest(const std::string& name) {
  const char* guests = std::getenv("YADO_GUESTS");
  std::error_code ignored;
  if (guests && std::filesystem::exists(std::filesystem::path(guests) / name / "kernel", ignored)) return {};
  return fmt::format("needs the guest {0}: tools/make-guest {0} $YADO_GUESTS/{0}", name);
}

void expect_nothing_left(const std::string& lab, const Traces& traces) {
  const auto running = running_leftovers(lab, traces, os::now());
  EXPECT_TRUE(running.empty()) << fmt::format("{}", fmt::join(running, "\n"));
  const auto files = files_left(lab);
  EXPECT_TRUE(files.empty()) << fmt::format("{}", fmt::join(files, "\n"));
}
}  // namespace yado::labtest

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (::geteuid() != 0) {
    std::fputs("lab tests make namespaces and control groups: run them as root\n", stderr);
    return 1;
  }
  for (const char* needed : {"YADO_PROGRAM", "YADO_SOURCE", "YADO_ROOTS"})
    if (!std::getenv(needed)) {
      std::fprintf(stderr, "%s is not set: run this by `./run stage lab`\n", needed);
      return 1;
    }
  ::signal(SIGPIPE, SIG_IGN);
  return RUN_ALL_TESTS();
}
