#include "workload/container/startup.hpp"

#include <algorithm>

#include <poll.h>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/listen_watch.hpp"
#include "workload/container/listeners.hpp"

namespace yado::container {
namespace {

/// One wait: ends early when the instance exits or the watch has something.
enum class Woken { time, hint, exit };

Result<Woken> wait(const os::Pidfd& first, const os::ListenWatch* watch, nanoseconds limit) {
  std::vector<pollfd> wanted = {{first.fd(), POLLIN, 0}};
  if (watch != nullptr)
    for (const os::Fd& event : watch->descriptors()) wanted.push_back({event.get(), POLLIN, 0});
  const timespec left{static_cast<time_t>(limit / 1s), static_cast<long>((limit % 1s).count())};
  const int ready = ::ppoll(wanted.data(), wanted.size(), &left, nullptr);
  if (ready < 0 && errno != EINTR) return fail_errno("poll");
  if (ready <= 0) return Woken::time;
  return wanted[0].revents != 0 ? Woken::exit : Woken::hint;
}

/// Every thread sleeps: none runs, none waits for a disk.
Result<bool> all_sleep(const os::Cgroup& group) {
  YADO_ASSIGN(const std::vector<pid_t> threads, group.threads(), "start-up");
  for (const pid_t thread : threads) {
    const auto text = os::read_text(fmt::format("/proc/{}/stat", thread));
    if (!text) continue;  // ended meanwhile
    const std::size_t close = text->rfind(')');
    if (close == std::string::npos || close + 2 >= text->size()) continue;
    if (const char state = (*text)[close + 2]; state == 'R' || state == 'D') return false;
  }
  return true;
}

}  // namespace

Result<StartupTimes> wait_startup(const os::Pidfd& first, const os::Cgroup& group, std::uint16_t port,
                                  nanoseconds already, nanoseconds limit) {
  const Instant started = os::now();
  const auto waited = [&] { return os::now() - started; };
  const auto exited = [&] { return fail(Errc::application, "the application exited before its start-up was complete"); };
  StartupTimes times;

  // The watch stands before the first look, so that nothing falls between the two.
  const auto watch = os::ListenWatch::open(port);
  if (!watch) log::debug("start-up is watched by looking: {}", watch.error().text());
  for (;;) {
    if (!listeners(first.pid(), port).empty()) break;
    if (waited() >= limit)
      return fail(Errc::timed_out, "nothing listens on port {} after {:.0f} ms", port, to_ms(waited()));
    // Without the watch: soon at first, then at most a sixteenth of the time it has taken anyway.
    const nanoseconds pause = watch ? limit - waited() : std::clamp<nanoseconds>((already + waited()) / 16, 1ms, 100ms);
    YADO_ASSIGN(const Woken woken, wait(first, watch ? &*watch : nullptr, std::min(pause, limit - waited())), "start-up");
    if (woken == Woken::exit) return exited();
    // A hint: somebody began to listen on this port, here or in another network namespace. Look again.
  }
  times.listening = waited();
  times.window = std::max<nanoseconds>((already + times.listening) / 4, 10ms);

  YADO_ASSIGN(os::CgroupUse before, group.use(), "start-up");
  Instant quiet_since = os::now();
  for (;;) {
    YADO_ASSIGN(const Woken woken, wait(first, nullptr, times.window / 4), "start-up");
    if (woken == Woken::exit) return exited();
    YADO_ASSIGN(const os::CgroupUse now, group.use(), "start-up");
    YADO_ASSIGN(const bool asleep, all_sleep(group), "start-up");
    // A hundredth is allowed for: timers of a runtime that tick for ever.
    if (!asleep || now.cpu - before.cpu > (os::now() - quiet_since) / 100) {
      before = now;
      quiet_since = os::now();
    } else if (os::now() - quiet_since >= times.window) {
      break;
    }
    if (waited() >= limit)
      return fail(Errc::timed_out, "the application listens on port {} but has not settled after {:.0f} ms", port, to_ms(waited()));
  }
  times.settled = waited();
  return times;
}

}  // namespace yado::container
