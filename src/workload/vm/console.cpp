#include "workload/vm/console.hpp"

#include <cerrno>
#include <sys/socket.h>
#include <unistd.h>

#include "base/units.hpp"
#include "os/clock.hpp"
#include "os/pidfd.hpp"

namespace yado::vm {

constexpr std::size_t most_held = 1_MiB;

Result<std::string> Console::receive() {
  char chunk[16 << 10];
  for (;;) {
    const ssize_t n = ::read(socket_.get(), chunk, sizeof chunk);
    if (n > 0) return std::string(chunk, static_cast<std::size_t>(n));
    if (n < 0 && errno == EAGAIN) return std::string();
    if (n == 0 || errno == ECONNRESET) return fail(Errc::application, "console: QEMU has ended");
    if (errno != EINTR) return fail_errno("console");
  }
}

Result<std::string> Console::read() {
  auto fresh = receive();
  if (!fresh && !rest_.empty()) return std::exchange(rest_, {});
  if (fresh) fresh->insert(0, std::exchange(rest_, {}));
  return fresh;
}

bool Console::hold() {
  const auto fresh = receive();
  if (!fresh) return false;
  rest_ += *fresh;
  if (rest_.size() > most_held) rest_.erase(0, rest_.size() - most_held);
  return true;
}

Result<std::size_t> Console::offer(std::string_view text) const {
  std::size_t taken = 0;
  while (taken < text.size()) {
    const ssize_t n = ::send(socket_.get(), text.data() + taken, text.size() - taken, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) taken += static_cast<std::size_t>(n);
    else if (errno == EAGAIN) break;
    else if (errno == EPIPE || errno == ECONNRESET) return fail(Errc::application, "console: QEMU has ended");
    else if (errno != EINTR) return fail_errno("console");
  }
  return taken;
}

Status Console::send(std::string_view text) const {
  YADO_ASSIGN(const std::size_t taken, offer(text), "send");
  if (taken < text.size()) return fail(Errc::unavailable, "console: the guest reads nothing; {} bytes are left", text.size() - taken);
  return {};
}

Result<std::string> Console::wait_for(std::string_view text, nanoseconds limit, const std::function<void(std::string_view)>& log) {
  const Instant deadline = os::now() + limit;
  std::string last;
  for (;;) {
    for (std::size_t end; (end = rest_.find('\n')) != std::string::npos;) {
      last = rest_.substr(0, end);
      rest_.erase(0, end + 1);
      while (!last.empty() && last.back() == '\r') last.pop_back();
      if (last.find(text) != std::string::npos) return last;
    }
    YADO_ASSIGN(const bool ready, os::readable_within(socket_.get(), deadline - os::now()), "console");
    if (!ready) return fail(Errc::timed_out, "console: no \"{}\" within {} ms; the last line was \"{}\"", text, to_ms(limit), rest_.empty() ? last : rest_);
    YADO_ASSIGN(const std::string fresh, receive(), fmt::format("wait for \"{}\"", text));
    if (log) log(fresh);
    rest_ += fresh;
  }
}

}  // namespace yado::vm
