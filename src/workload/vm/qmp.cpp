#include "workload/vm/qmp.hpp"

#include <cerrno>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/pidfd.hpp"

namespace yado::vm {
namespace {

using json = nlohmann::json;

constexpr std::size_t longest_line = 4 << 20;  // the longest answer there is, query-qmp-schema, has some 200 KB
constexpr std::size_t most_events = 1024;      // of a guest that makes events faster than anybody takes them, the newest

json parse(std::string_view text) { return json::parse(text, nullptr, false); }

std::string text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::int64_t number_of(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}

Errc code_of(std::string_view error_class) {
  if (error_class == "CommandNotFound") return Errc::unsupported;
  if (error_class == "DeviceNotFound") return Errc::not_found;
  if (error_class == "DeviceNotActive") return Errc::conflict;
  return Errc::io;
}

}  // namespace

Result<Qmp> Qmp::open(os::Fd socket, nanoseconds limit) {
  YADO_TRY(os::set_nonblocking(socket), "QMP");
  Qmp made(std::move(socket));
  YADO_TRY(made.negotiate(limit), "QMP");
  return made;
}

Status Qmp::negotiate(nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  while (!greeted_) {
    YADO_ASSIGN(const bool came, receive(deadline), "greeting");
    if (!came) return fail(Errc::timed_out, "no greeting within {} ms: QEMU stands still, or another client holds this monitor", to_ms(limit));
  }
  YADO_TRY(execute("qmp_capabilities", "{}", deadline - os::now()), "negotiate");
  return {};
}

Result<std::string> Qmp::execute(std::string_view command, std::string_view arguments, nanoseconds limit, int descriptor) {
  const Instant deadline = os::now() + limit;
  json parsed = parse(arguments);
  if (!parsed.is_object()) return fail(Errc::invalid_argument, "QMP {}: the arguments are no JSON object: {}", command, arguments);
  const json line = {{"execute", command}, {"arguments", std::move(parsed)}, {"id", ++asked_}};
  answer_.reset();
  YADO_TRY(send(line.dump() + "\n", descriptor, deadline), fmt::format("QMP {}", command));
  while (!answer_) {
    YADO_ASSIGN(const bool came, receive(deadline), fmt::format("QMP {}", command));
    if (!came) return fail(Errc::timed_out, "QMP {}: no answer within {} ms", command, to_ms(limit));
  }
  if (answer_->error_class.empty()) return std::move(answer_->result);
  return fail(code_of(answer_->error_class), "QMP {}: {}", command, answer_->error_text);
}

Result<std::optional<QmpEvent>> Qmp::next_event(nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  while (events_.empty()) {
    YADO_ASSIGN(const bool came, receive(deadline), "QMP event");
    if (!came) return std::optional<QmpEvent>{};
  }
  std::optional<QmpEvent> oldest = std::move(events_.front());
  events_.pop_front();
  return oldest;
}

Status Qmp::send(std::string_view line, int descriptor, Instant deadline) {
  if (broken_) return std::unexpected(*broken_);
  while (!line.empty()) {
    iovec part{const_cast<char*>(line.data()), line.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof descriptor)] = {};
    if (descriptor >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof descriptor);
      std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    }
    const ssize_t n = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (n >= 0) {
      line.remove_prefix(static_cast<std::size_t>(n));
      descriptor = -1;
    } else if (errno == EAGAIN) {
      YADO_ASSIGN(const bool ready, os::readable_within(socket_.get(), deadline - os::now(), POLLOUT), "send");
      if (!ready) {
        // Half a command is out: whatever follows would be misread.
        broken_ = Error{Errc::timed_out, "QEMU does not read its monitor"};
        return std::unexpected(*broken_);
      }
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return fail(Errc::application, "QEMU has ended");
    } else if (errno != EINTR) {
      return fail_errno("send");
    }
  }
  return {};
}

Result<bool> Qmp::receive(Instant deadline) {
  if (broken_) return std::unexpected(*broken_);
  YADO_ASSIGN(const bool ready, os::readable_within(socket_.get(), deadline - os::now()), "receive");
  if (!ready) return false;
  char chunk[16 << 10];
  const ssize_t n = ::recv(socket_.get(), chunk, sizeof chunk, 0);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (n < 0 && errno != ECONNRESET) return fail_errno("receive");
  if (n <= 0) {
    broken_ = Error{Errc::application, "QEMU has ended"};
    return std::unexpected(*broken_);
  }
  buffer_.append(chunk, static_cast<std::size_t>(n));
  std::size_t begin = 0;
  for (std::size_t end; (end = buffer_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    if (Status taken = take(std::string_view(buffer_).substr(begin, end - begin)); !taken) {
      broken_ = taken.error();
      return std::unexpected(*broken_);
    }
  }
  buffer_.erase(0, begin);
  if (buffer_.size() > longest_line) {
    broken_ = Error{Errc::corrupt, fmt::format("a line of more than {} bytes", longest_line)};
    return std::unexpected(*broken_);
  }
  return true;
}

Status Qmp::take(std::string_view line) {
  while (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  if (line.empty()) return {};
  const json message = parse(line);
  if (!message.is_object()) return fail(Errc::corrupt, "not a JSON object: {}", line.substr(0, 80));
  if (!greeted_) {
    const json version = message.value("/QMP/version/qemu"_json_pointer, json::object());
    if (!message.contains("QMP") || !version.is_object()) return fail(Errc::corrupt, "no QMP greeting: {}", line.substr(0, 80));
    version_ = {static_cast<int>(number_of(version, "major")), static_cast<int>(number_of(version, "minor")), static_cast<int>(number_of(version, "micro"))};
    greeted_ = true;
    return {};
  }
  if (message.contains("event")) {
    const json data = message.contains("data") ? message["data"] : json::object();
    const json at = message.contains("timestamp") && message["timestamp"].is_object() ? message["timestamp"] : json::object();
    if (events_.size() == most_events) events_.pop_front();
    events_.push_back({text_of(message, "event"), data.dump(-1, ' ', false, json::error_handler_t::replace),
                       seconds(number_of(at, "seconds")) + std::chrono::microseconds(number_of(at, "microseconds"))});
    return {};
  }
  if (const auto id = message.find("id"); id == message.end() || !id->is_number_unsigned() || id->get<std::uint64_t>() != asked_) {
    // Of a command that was given up, or an error about bytes that were no command at all.
    if (id == message.end()) log::warn("QMP: an answer to nothing: {}", line.substr(0, 200));
    return {};
  }
  Answer answer;
  if (const auto error = message.find("error"); error != message.end() && error->is_object()) {
    answer.error_class = text_of(*error, "class");
    if (answer.error_class.empty()) answer.error_class = "GenericError";
    answer.error_text = text_of(*error, "desc");
  } else if (const auto result = message.find("return"); result != message.end()) {
    answer.result = result->dump(-1, ' ', false, json::error_handler_t::replace);
  } else {
    return fail(Errc::corrupt, "an answer without `return` and `error`: {}", line.substr(0, 80));
  }
  answer_ = std::move(answer);
  return {};
}

}  // namespace yado::vm
