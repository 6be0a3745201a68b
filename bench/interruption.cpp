#include "interruption.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "os/clock.hpp"

namespace yado::bench {

Progress::Progress() : begun_(os::now()) {}

void Progress::operator()(const std::string& line) const {
  fmt::print("[{:6.1f} s] {}\n", to_ms(os::now() - begun_) / 1000, line);
  std::fflush(stdout);
}

Interruption::Interruption() {
  ::sigemptyset(&signals_);
  ::sigaddset(&signals_, SIGINT);
  ::sigaddset(&signals_, SIGTERM);
  ::sigaddset(&signals_, SIGHUP);
  ::pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  std::thread([this] { wait(); }).detach();
}

void Interruption::set_lab(const Program& lab) {
  if (auto handle = lab.handle()) {
    const std::lock_guard lock(mutex_);
    lab_ = std::move(*handle);
  }
}

void Interruption::let_through() const {
  while (begun_) ::pause();
}

void Interruption::wait() {
  int signal = 0;
  ::sigwait(&signals_, &signal);
  begun_ = true;
  fmt::print(stderr, "\ninterrupted: ending the lab\n");
  const std::lock_guard lock(mutex_);
  if (lab_.valid() && lab_.send(SIGTERM)) (void)lab_.ended_within(30s);
  std::_Exit(128 + signal);
}

}  // namespace yado::bench
