// Whoever ends a test program (a stage's budget, a crash) is told which test was under way: without "[ RUN ]" lines nobody else says so.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <execinfo.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace {

char under_way[256];  // what a signal handler may read
pid_t test_program;

void say(int signal) {
  // Children that were forked without a program of their own have this handler, too.
  if (::getpid() == test_program && under_way[0] != '\0') {
    (void)!::write(STDERR_FILENO, under_way, std::strlen(under_way));
    void* frames[64];
    if (signal != SIGTERM) ::backtrace_symbols_fd(frames, ::backtrace(frames, 64), STDERR_FILENO);
  }
  ::raise(signal);  // SA_RESETHAND: what it does to everybody
}

class UnderWay : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo& test) override {
    std::snprintf(under_way, sizeof under_way, "\nended in %s.%s\n", test.test_suite_name(), test.name());
  }
  void OnTestEnd(const ::testing::TestInfo&) override { under_way[0] = '\0'; }
  void OnTestProgramStart(const ::testing::UnitTest&) override {
    test_program = ::getpid();
    // Of this run only: tests start this program, too, for one test of it each.
    for (const char* share : {"GTEST_TOTAL_SHARDS", "GTEST_SHARD_INDEX"}) ::unsetenv(share);
    struct sigaction action {};
    action.sa_handler = say;
    action.sa_flags = SA_RESETHAND | SA_NODEFER;
    ::sigaction(SIGTERM, &action, nullptr);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they say more
    void* loaded[1];
    (void)::backtrace(loaded, 1);  // its library: not in a handler
    for (const int crash : {SIGSEGV, SIGBUS, SIGABRT}) ::sigaction(crash, &action, nullptr);
#endif
  }
};

[[maybe_unused]] const bool listening = (::testing::UnitTest::GetInstance()->listeners().Append(new UnderWay), true);

}  // namespace
