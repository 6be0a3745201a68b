#include "os/listen_watch.hpp"

#include <fcntl.h>
#include <linux/mount.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::os {
namespace {

constexpr int tcp_listen = 10;  // TCP_LISTEN, include/net/tcp_states.h

/// The number of the tracepoint, read from a tracefs that is mounted nowhere.
Result<std::uint64_t> tracepoint_number() {
  const Fd context(static_cast<int>(::syscall(SYS_fsopen, "tracefs", FSOPEN_CLOEXEC)));
  if (!context.valid()) return fail_errno("fsopen tracefs");
  if (::syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return fail_errno("tracefs");
  const Fd root(static_cast<int>(::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC, 0)));
  if (!root.valid()) return fail_errno("fsmount tracefs");
  const Fd file(::openat(root.get(), "events/sock/inet_sock_set_state/id", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return fail_errno("tracepoint sock:inet_sock_set_state");
  char text[32]{};
  if (::read(file.get(), text, sizeof text - 1) <= 0) return fail_errno("tracepoint sock:inet_sock_set_state");
  return std::strtoull(text, nullptr, 10);
}

/// The head page and one page of data.
std::size_t buffer_bytes() { return 2 * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

}  // namespace

ListenWatch::~ListenWatch() {
  for (void* buffer : buffers_) ::munmap(buffer, buffer_bytes());
}

Result<ListenWatch> ListenWatch::open(std::uint16_t port) {
  YADO_ASSIGN(const std::uint64_t number, tracepoint_number(), "watch for a listening socket");
  perf_event_attr attributes{};
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_TRACEPOINT;
  attributes.config = number;
  attributes.sample_period = 1;
  attributes.sample_type = PERF_SAMPLE_RAW;
  attributes.wakeup_events = 1;
  attributes.disabled = 1;
  const std::string filter = fmt::format("newstate == {} && sport == {}", tcp_listen, port);
  ListenWatch watch;
  const long cpus = ::sysconf(_SC_NPROCESSORS_CONF);
  for (long cpu = 0; cpu < cpus; ++cpu) {
    Fd event(static_cast<int>(::syscall(SYS_perf_event_open, &attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC)));
    if (!event.valid()) {
      if (errno == ENODEV) continue;  // an absent CPU
      return fail_errno("perf_event_open");
    }
    if (::ioctl(event.get(), PERF_EVENT_IOC_SET_FILTER, filter.c_str()) != 0) return fail_errno("tracepoint filter");
    // Read-only means overwriting: the buffer is never read and never full.
    void* buffer = ::mmap(nullptr, buffer_bytes(), PROT_READ, MAP_SHARED, event.get(), 0);
    if (buffer == MAP_FAILED) return fail_errno("map the buffer of a tracepoint");
    watch.buffers_.push_back(buffer);
    watch.events_.push_back(std::move(event));
  }
  for (const Fd& event : watch.events_)
    if (::ioctl(event.get(), PERF_EVENT_IOC_ENABLE, 0) != 0) return fail_errno("enable a tracepoint");
  return watch;
}

}  // namespace yado::os
