#include "workload/vm/guest_agent.hpp"

#include <algorithm>
#include <cerrno>
#include <poll.h>
#include <random>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "base/base64.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::vm {
namespace {

using json = nlohmann::json;

constexpr char delimiter = '\xff';            // no byte of UTF-8, so of no JSON
constexpr std::size_t longest_line = 48 << 20;  // the agent keeps 16 MB of each of a program's outputs, sent as base64

constexpr nanoseconds shortest_wait = 10ms, longest_wait = 500ms;

std::unexpected<Error> silent(nanoseconds limit) {
  return fail(Errc::unavailable, "the guest's agent does not answer within {:.0f} ms: qemu-guest-agent does not run in it, or hangs", to_ms(limit));
}

Result<int> number_in(const Result<std::string>& answer) {
  if (!answer) return std::unexpected(answer.error());
  const json parsed = json::parse(*answer, nullptr, false);
  if (!parsed.is_number_integer()) return fail(Errc::corrupt, "the guest's agent answers {}", answer->substr(0, 80));
  return parsed.get<int>();
}

}  // namespace

Result<GuestAgent> GuestAgent::open(os::Fd socket, nanoseconds limit) {
  YADO_TRY(os::set_nonblocking(socket), "guest agent");
  GuestAgent made(std::move(socket));
  YADO_TRY(made.synchronize(limit), "guest agent");
  return made;
}

Status GuestAgent::synchronize(nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  in_step_ = false;
  const std::uint32_t id = std::random_device()();
  // The delimiter also ends what the client before has left half-said.
  const json line = {{"execute", "guest-sync-delimited"}, {"arguments", {{"id", id}}}};
  YADO_TRY(send(delimiter + line.dump() + "\n", deadline), "synchronize");
  for (;;) {
    const auto heard = receive(deadline);
    if (!heard && heard.error().code == Errc::unavailable) return silent(limit);
    if (!heard) return std::unexpected(heard.error());
    const json answer = json::parse(*heard, nullptr, false);
    if (!answer.is_object() || answer.value("return", json()) != id) continue;
    in_step_ = true;
    return {};
  }
}

Result<std::string> GuestAgent::execute(std::string_view command, std::string_view arguments, nanoseconds limit) {
  if (!in_step_) return fail(Errc::unavailable, "{}: the guest's agent owes an answer", command);
  const Instant deadline = os::now() + limit;
  json parsed = json::parse(arguments, nullptr, false);
  if (!parsed.is_object()) return fail(Errc::invalid_argument, "{}: the arguments are no JSON object: {}", command, arguments);
  in_step_ = false;
  YADO_TRY(send(json{{"execute", command}, {"arguments", std::move(parsed)}}.dump() + "\n", deadline), command);
  const auto heard = receive(deadline);
  if (!heard && heard.error().code == Errc::unavailable) return context(silent(limit).error(), std::string(command));
  if (!heard) return context(heard.error(), std::string(command));
  const json answer = json::parse(*heard, nullptr, false);
  if (!answer.is_object() || (!answer.contains("return") && !answer.contains("error")))
    return fail(Errc::corrupt, "{}: the guest's agent answers {}", command, heard->substr(0, 80));
  in_step_ = true;
  if (const auto result = answer.find("return"); result != answer.end()) return result->dump(-1, ' ', false, json::error_handler_t::replace);
  const json& error = answer["error"];
  const auto text = [&](const char* key) { return error.is_object() && error.contains(key) && error[key].is_string() ? error[key].get<std::string>() : std::string(); };
  const bool unknown = text("class") == "CommandNotFound" || text("desc").find("not currently supported") != std::string::npos;
  return fail(unknown ? Errc::unsupported : Errc::io, "{}: the guest's agent says: {}", command, text("desc"));
}

Status GuestAgent::set_time(std::int64_t wall_ns, nanoseconds limit) {
  YADO_TRY(execute("guest-set-time", json{{"time", wall_ns}}.dump(), limit), "guest's clock");
  return {};
}

Result<std::int64_t> GuestAgent::time(nanoseconds limit) {
  YADO_ASSIGN(const std::string answer, execute("guest-get-time", "{}", limit), "guest's clock");
  const json parsed = json::parse(answer, nullptr, false);
  if (!parsed.is_number_integer()) return fail(Errc::corrupt, "the guest's agent says it is {}", answer);
  return parsed.get<std::int64_t>();
}

Result<int> GuestAgent::freeze_disks(nanoseconds limit) { return number_in(execute("guest-fsfreeze-freeze", "{}", limit)); }
Result<int> GuestAgent::thaw_disks(nanoseconds limit) { return number_in(execute("guest-fsfreeze-thaw", "{}", limit)); }

Status GuestAgent::send(std::string_view text, Instant deadline) {
  while (!text.empty()) {
    const ssize_t n = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      text.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      YADO_ASSIGN(const bool ready, os::readable_within(socket_.get(), deadline - os::now(), POLLOUT), "send");
      if (!ready) return fail(Errc::unavailable, "the guest's agent does not read");
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return fail(Errc::application, "QEMU has ended");
    } else if (errno != EINTR) {
      return fail_errno("send");
    }
  }
  return {};
}

Result<std::string> GuestAgent::receive(Instant deadline) {
  for (;;) {
    if (const std::size_t end = buffer_.find('\n'); end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      if (const std::size_t cut = line.rfind(delimiter); cut != std::string::npos) line.erase(0, cut + 1);
      return line;
    }
    if (buffer_.size() > longest_line) {
      buffer_.clear();
      return fail(Errc::corrupt, "the guest's agent sends a line of more than {} bytes", longest_line);
    }
    YADO_ASSIGN(const bool ready, os::readable_within(socket_.get(), deadline - os::now()), "receive");
    if (!ready) return fail(Errc::unavailable, "the guest's agent is silent");
    char chunk[16 << 10];
    const ssize_t n = ::recv(socket_.get(), chunk, sizeof chunk, 0);
    if (n > 0) buffer_.append(chunk, static_cast<std::size_t>(n));
    else if (n == 0 || errno == ECONNRESET) return fail(Errc::application, "QEMU has ended");
    else if (errno != EINTR && errno != EAGAIN) return fail_errno("receive");
  }
}

Result<GuestRun> run_in_guest(const std::function<Result<GuestAgent>()>& connect, const std::function<Status(nanoseconds)>& wait,
                              const std::vector<std::string>& command, nanoseconds limit) {
  if (command.empty()) return fail(Errc::invalid_argument, "no program given");
  const json call = {{"path", command.front()}, {"arg", json(std::vector<std::string>(command.begin() + 1, command.end()))}, {"capture-output", true}};
  const std::string arguments = call.dump(-1, ' ', false, json::error_handler_t::replace);
  std::int64_t pid = 0;
  {
    YADO_ASSIGN(GuestAgent agent, connect(), "run in the guest");
    YADO_ASSIGN(const std::string begun, agent.execute("guest-exec", arguments, limit), "run in the guest");
    const json answer = json::parse(begun, nullptr, false);
    if (!answer.is_object() || !answer.value("pid", json()).is_number_integer()) return fail(Errc::corrupt, "guest-exec answers {}", begun.substr(0, 80));
    pid = answer["pid"].get<std::int64_t>();
  }
  // The agent does not say when a program ends: asked again after a share of the time that has passed.
  for (const Instant begun = os::now();;) {
    YADO_TRY(wait(std::clamp<nanoseconds>((os::now() - begun) / 8, shortest_wait, longest_wait)), "run in the guest");
    YADO_ASSIGN(GuestAgent agent, connect(), "run in the guest");
    YADO_ASSIGN(const std::string text, agent.execute("guest-exec-status", json{{"pid", pid}}.dump(), limit), "run in the guest");
    const json state = json::parse(text, nullptr, false);
    if (!state.is_object()) return fail(Errc::corrupt, "guest-exec-status answers {}", text.substr(0, 80));
    if (state.value("exited", json()) != true) continue;
    GuestRun ended;
    const auto number = [&](const char* key) { return state.value(key, json()).is_number_integer() ? state[key].get<int>() : 0; };
    ended.status = {number("exitcode"), number("signal")};
    for (const char* key : {"out-data", "err-data"}) {
      if (!state.contains(key) || !state[key].is_string()) continue;
      YADO_ASSIGN(const std::string bytes, from_base64(state[key].get<std::string>()), key);
      ended.output += bytes;
    }
    return ended;
  }
}

}  // namespace yado::vm
