#include "workload/vm/paging.hpp"

#include <cerrno>
#include <csignal>
#include <nlohmann/json.hpp>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "os/file.hpp"
#include "pager/guest_memory.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int hook_descriptor = 3, ready_descriptor = 4;  // in the pager

/// A guest that stands still for so much stands still for some milliseconds.
constexpr std::uint64_t little = 1024;  // pages
/// A guest that writes faster than this host saves will not leave less.
constexpr int most_rounds = 12;

std::string read_to_end(const os::Fd& from) {
  std::string text;
  char buffer[1024];
  for (;;) {
    const ssize_t n = ::read(from.get(), buffer, sizeof buffer);
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
    else if (n == 0 || errno != EINTR) return text;
  }
}

Result<os::Fd> connect_to(const fs::path& path) {
  os::Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!socket.valid()) return fail_errno("socket");
  if (path.native().size() >= sizeof address.sun_path) return fail(Errc::invalid_argument, "{}: longer than a socket's path may be", path.native());
  path.native().copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return fail_errno("pager " + path.native());
  return socket;
}

/// Raises no SIGPIPE, whoever calls this.
Status send_all(const os::Fd& socket, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(Errc::unavailable, "the pager has ended");
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

/// One call and its answer, which is an error when the pager says so.
Result<json> exchange(const os::Fd& socket, std::string& heard, const std::string& call) {
  YADO_TRY(send_all(socket, call + "\n"), "pager");
  std::size_t end;
  while ((end = heard.find('\n')) == std::string::npos) {
    char text[4096];
    const ssize_t n = ::read(socket.get(), text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(Errc::unavailable, "the pager has ended");
    heard.append(text, static_cast<std::size_t>(n));
  }
  json answer = json::parse(heard.substr(0, end), nullptr, false);
  heard.erase(0, end + 1);
  if (!answer.is_object()) return fail(Errc::corrupt, "the pager's answer is no JSON object");
  if (const auto error = answer.find("error"); error != answer.end())
    return fail(errc_from_name(error->value("code", "")), "{}", error->value("message", ""));
  return answer;
}

/// Rounds while the guest runs, until as little is left as there will be.
Status converge(const os::Fd& socket, std::string& heard, std::string call, const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  std::uint64_t before = ~std::uint64_t{0}, saved = 0;
  for (int rounds = 0; rounds < most_rounds; ++rounds) {
    YADO_ASSIGN(const json answer, exchange(socket, heard, call), "memory");
    const auto left = answer.value("left", std::uint64_t{0});
    saved += answer.value("pages", std::uint64_t{0});
    if (progress) progress(saved, left);
    // Less than a tenth less than after the round before.
    if (left <= little || left > before - before / 10) return {};
    before = left;
    call = R"({"do":"round"})";
  }
  return {};
}

}  // namespace

Result<PagerProcess> PagerProcess::start(const Paging& paging, const fs::path& directory, std::uint64_t memory_bytes) {
  YADO_ASSIGN(PagerProcess made, begin(paging, directory, memory_bytes), "start");
  YADO_TRY(made.wait_ready(), "start");
  return made;
}

Result<PagerProcess> PagerProcess::begin(const Paging& paging, const fs::path& directory, std::uint64_t memory_bytes) {
  PagerProcess made;
  pager::ServiceConfig config = paging.config;
  config.memory_bytes = memory_bytes;
  config.control = made.control_ = directory / "pager";
  const fs::path file = directory / "pager.json";
  YADO_TRY(os::replace_text(file, to_text(config)), "pager");
  YADO_ASSIGN(made.library_, pager::hook_library(), "pager");
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return fail_errno("socket to a pager");
  made.hook_ = os::Fd(ends[0]);
  const os::Fd theirs(ends[1]);
  YADO_ASSIGN(os::Pipe ready, os::make_pipe(), "pager");
  os::Spawn spawn{.arguments = paging.program};
  spawn.arguments.push_back(file);
  spawn.standard_error = STDERR_FILENO;
  spawn.descriptors = {{theirs.get(), hook_descriptor}, {ready.write.get(), ready_descriptor}};
  spawn.death_signal = SIGKILL;
  spawn.in_child = [&paging]() -> Status {
    if (paging.network_namespace >= 0 && ::setns(paging.network_namespace, CLONE_NEWNET) != 0) return fail_errno("enter the host's network");
    return {};
  };
  YADO_ASSIGN(made.process_, os::spawn(spawn), "pager");
  YADO_TRY(os::replace_text(directory / "pager.pid", fmt::format("{}\n", made.process_.pidfd().pid())), "pager");
  made.ready_ = std::move(ready.read);
  return made;
}

Status PagerProcess::wait_ready() {
  const os::Fd ready = std::move(ready_);
  const std::string said = read_to_end(ready);
  if (said == "ok") return {};
  const std::size_t colon = said.find(':');
  if (colon == std::string::npos) return fail(Errc::internal, "the pager ended before it was ready");
  return fail(static_cast<Errc>(std::atoi(said.c_str())), "{}", said.substr(colon + 1));
}

/// Servers that do not answer keep their pages until the workload's next epoch.
void PagerProcess::wait_for_end() {
  constexpr nanoseconds moment = 2s;
  hook_.reset();
  if (process_.running()) (void)process_.wait(moment);
}

void PagerProcess::let_go() {
  hook_.reset();
  library_.reset();
}

Result<std::string> PagedMemory::ask(const std::string& call) {
  YADO_ASSIGN(const json answer, exchange(socket_, heard_, call), "memory");
  return answer.dump();
}

Status PagedMemory::before_pause() {
  YADO_ASSIGN(socket_, connect_to(options_.control), "memory");
  const json begin{{"do", "save"}, {"part", options_.part.native()}, {"name", options_.name}, {"cut", options_.cut.hex()},
                   {"base_cut", options_.base_cut.none() ? "" : options_.base_cut.hex()}, {"base", options_.base}};
  return converge(socket_, heard_, begin.dump(), options_.progress);
}

Status PagedMemory::save(const os::Fd&, std::uint64_t) {
  YADO_TRY(ask(R"({"do":"fix"})"), "at the cut");
  return {};
}

Status PagedMemory::learn_shares(const std::string& call) {
  YADO_ASSIGN(const json answer, exchange(socket_, heard_, call), "memory");
  shares_.clear();
  base_cut_ = image::CutId::from_hex(answer.value("base_cut", ""));
  for (const json& share : answer.at("shares"))
    shares_.push_back({share.value("host", ""), share.value("pages", std::uint64_t{0}), share.value("bytes", std::uint64_t{0}), share.value("sum", "")});
  return {};
}

Status PagedMemory::after_pause() { return learn_shares(R"({"do":"finish"})"); }
Status PagedMemory::keep() { return learn_shares(R"({"do":"keep"})"); }

Status LeavingMemory::before_pause() {
  YADO_ASSIGN(socket_, connect_to(options_.control), "memory");
  return converge(socket_, heard_, json{{"do", "leave"}, {"to", options_.to}}.dump(), options_.progress);
}

/// The connection stays open: as long as it is, the pager keeps everything as it is.
Status LeavingMemory::save(const os::Fd&, std::uint64_t) {
  YADO_ASSIGN(const json answer, exchange(socket_, heard_, json{{"do", "left"}, {"part", options_.part.native()}}.dump()), "memory");
  servers_ = answer.at("servers").dump();
  return {};
}

Result<std::string> ask_pager(const fs::path& control, const std::string& call) {
  YADO_ASSIGN(const os::Fd socket, connect_to(control), "pager");
  std::string heard;
  YADO_ASSIGN(const json answer, exchange(socket, heard, call), "pager");
  return answer.dump();
}

Result<std::vector<std::string>> change_memory_servers(const fs::path& control, std::uint64_t local_bytes,
                                                       const std::vector<pager::ServiceConfig::Server>& servers) {
  const json call{{"do", "servers"}, {"local_bytes", local_bytes}, {"servers", json::parse(to_text(servers))}};
  YADO_ASSIGN(const std::string answer, ask_pager(control, call.dump()), "memory");
  return json::parse(answer).value("notes", std::vector<std::string>());
}

Status wait_until_drained(const fs::path& control) {
  YADO_TRY(ask_pager(control, R"({"do":"drained"})"), "memory");
  return {};
}

}  // namespace yado::vm
