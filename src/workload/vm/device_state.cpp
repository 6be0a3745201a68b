#include "workload/vm/device_state.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <future>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/pidfd.hpp"
#include "workload/vm/sockets.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

constexpr const char* state_name = "device-state";  // of the descriptor, in QEMU
constexpr std::uintmax_t most_bytes = 64_MiB;
constexpr const char* state_uri = "fd:device-state";

Status prepare(Qmp& qmp, nanoseconds limit) {
  json capabilities = json::array();
  for (const char* name : {"events", "x-ignore-shared"}) capabilities.push_back({{"capability", name}, {"state", true}});
  YADO_TRY(qmp.execute("migrate-set-capabilities", json{{"capabilities", capabilities}}.dump(), limit), "device state");
  return {};
}

Status hand_over(Qmp& qmp, const os::Fd& end, nanoseconds limit) {
  YADO_TRY(qmp.execute("getfd", json{{"fdname", state_name}}.dump(), limit, end.get()), "device state");
  return {};
}

/// The next status of the migration; none when `limit` passed.
Result<std::optional<std::string>> next_status(Qmp& qmp, nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  for (;;) {
    YADO_ASSIGN(const auto event, qmp.next_event(deadline - os::now()), "device state");
    if (!event) return std::optional<std::string>{};
    if (event->name != "MIGRATION") continue;
    const json data = json::parse(event->data, nullptr, false);
    return std::optional<std::string>(data.is_object() ? data.value("status", "") : "");
  }
}

bool over(const std::string& status) { return status == "completed" || status == "failed" || status == "cancelled"; }

/// Until the migration is over: its last status.
Result<std::string> last_status(Qmp& qmp, nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  for (;;) {
    YADO_ASSIGN(const auto status, next_status(qmp, deadline - os::now()), "wait for QEMU's migration");
    if (!status) return fail(Errc::timed_out, "QEMU's migration is not over after {} ms", to_ms(limit));
    if (over(*status)) return *status;
  }
}

std::string reason_of_failure(Qmp& qmp, nanoseconds limit) {
  const auto answer = qmp.execute("query-migrate", "{}", limit);
  const json parsed = answer ? json::parse(*answer, nullptr, false) : json();
  return parsed.is_object() ? parsed.value("error-desc", "QEMU gives no reason") : "QEMU gives no reason";
}

/// What comes through the socket, until its end.
Result<std::uint64_t> drain(const os::Fd& stream, const os::Fd& file, nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  std::array<char, 64 << 10> chunk;
  for (std::uint64_t total = 0;;) {
    YADO_ASSIGN(const bool ready, os::readable_within(stream.get(), deadline - os::now()), "device state");
    if (!ready) return fail(Errc::timed_out, "device state: QEMU has not sent all of it within {} ms", to_ms(limit));
    const ssize_t n = ::read(stream.get(), chunk.data(), chunk.size());
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return fail_errno("device state: read");
    if (n == 0) return total;
    YADO_TRY(os::write_all(file, {chunk.data(), static_cast<std::size_t>(n)}), "device state");
    total += static_cast<std::uint64_t>(n);
  }
}

/// Sends all of it, then listens to QEMU, who may refuse what it reads.
Status feed(Qmp& qmp, std::string_view state, os::Fd stream, nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  while (!state.empty()) {
    const ssize_t n = ::send(stream.get(), state.data(), state.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      state.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EPIPE || errno == ECONNRESET) {
      break;  // QEMU says why by its status or its end
    } else if (errno == EAGAIN) {
      YADO_ASSIGN(const bool ready, os::readable_within(stream.get(), deadline - os::now(), POLLOUT), "device state");
      if (!ready) return fail(Errc::timed_out, "device state: QEMU has not read all of it within {} ms", to_ms(limit));
    } else if (errno != EINTR) {
      return fail_errno("device state: write");
    }
  }
  stream.reset();
  YADO_ASSIGN(const std::string status, last_status(qmp, limit), "device state");
  if (status != "completed") return fail(Errc::corrupt, "QEMU refuses the device state: migration {}: {}", status, reason_of_failure(qmp, limit));
  return {};
}

}  // namespace

Result<DeviceStateSaving> DeviceStateSaving::prepare(Qmp& qmp, const fs::path& file, nanoseconds limit) {
  YADO_ASSIGN(os::Fd target, os::open_path(file, O_WRONLY | O_CREAT | O_EXCL, 0600), "device state");
  DeviceStateSaving made(qmp, file, std::move(target));
  YADO_TRY(yado::vm::prepare(qmp, limit), "device state");
  YADO_ASSIGN(SocketPair stream, make_socket_pair(), "device state");
  YADO_TRY(hand_over(qmp, stream.theirs, limit), "device state");
  made.stream_ = std::move(stream.ours);
  return made;
}

/// A stream that was not used is QEMU's until the next one takes its name.
DeviceStateSaving::~DeviceStateSaving() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<std::uint64_t> DeviceStateSaving::save(nanoseconds limit) {
  // Read from the beginning, not from QEMU's answer on: its migration thread may hold QEMU's lock, which the answer needs, and stand still at a full socket.
  auto drained = std::async(std::launch::async, [&] {
    const auto bytes = drain(stream_, file_, limit);
    if (!bytes) ::shutdown(stream_.get(), SHUT_RDWR);  // with nobody to write to QEMU gives up by itself
    return bytes;
  });
  if (auto begun = qmp_->execute("migrate", json{{"uri", state_uri}}.dump(), limit); !begun) {
    ::shutdown(stream_.get(), SHUT_RDWR);
    (void)drained.get();
    (void)qmp_->execute("closefd", json{{"fdname", state_name}}.dump(), limit);
    return context(begun.error(), "device state");
  }
  const auto bytes = drained.get();
  stream_.reset();
  if (!bytes) (void)qmp_->execute("migrate_cancel", "{}", limit);
  const auto status = last_status(*qmp_, limit);
  if (!bytes) return context(bytes.error(), "device state");
  YADO_TRY(status, "device state");
  if (*status != "completed") return fail(Errc::io, "device state: migration {}: {}", *status, reason_of_failure(*qmp_, limit));
  path_.clear();
  return *bytes;
}

Status load_device_state(Qmp& qmp, const fs::path& file, nanoseconds limit) {
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(file, error);
  if (error) return fail_errno(error.value(), fmt::format("device state {}", file.native()));
  if (bytes > most_bytes) return fail(Errc::corrupt, "device state {} has {} bytes, more than any guest's", file.native(), bytes);
  YADO_ASSIGN(const std::string state, os::read_text(file), "device state");
  YADO_TRY(prepare(qmp, limit), "device state");
  YADO_ASSIGN(SocketPair stream, make_socket_pair(), "device state");
  YADO_TRY(hand_over(qmp, stream.theirs, limit), "device state");
  stream.theirs.reset();
  YADO_TRY(qmp.execute("migrate-incoming", json{{"uri", state_uri}}.dump(), limit), "device state");
  return feed(qmp, state, std::move(stream.ours), limit);
}

Result<std::string> run_state(Qmp& qmp, nanoseconds limit) {
  YADO_ASSIGN(const std::string answer, qmp.execute("query-status", "{}", limit), "run state");
  const json parsed = json::parse(answer, nullptr, false);
  return parsed.is_object() ? parsed.value("status", "") : "";
}

Status resume(Qmp& qmp, nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  for (;;) {
    YADO_ASSIGN(const std::string state, run_state(qmp, deadline - os::now()), "continue");
    if (state == "running") return {};
    if (state != "finish-migrate") break;
    if (os::now() >= deadline) return fail(Errc::timed_out, "continue: QEMU's migration holds the guest");
  }
  YADO_TRY(qmp.execute("cont", "{}", deadline - os::now()), "continue");
  return {};
}

}  // namespace yado::vm
