#include "workload/vm/paging.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <limits>
#include <nlohmann/json.hpp>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/memory.hpp"
#include "pager/guest_memory.hpp"
#include "pager/page.hpp"
#include "workload/vm/brake.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int hook_descriptor = 3, told_descriptor = 4;  // in the pager

/// A guest that stands still for so much stands still for some milliseconds.
constexpr std::uint64_t little = 1024;  // pages
/// A guest that writes faster than this host saves will not leave less.
constexpr int most_rounds = 12;
/// Rounds of a checkpoint end when 1/8 of the memory is left: that is copied in memory, which takes room for as long.
constexpr std::uint64_t part_to_copy = 8;
/// While a guest stands still for so much, its devices are saved, which takes longer.
constexpr std::uint64_t very_little = 64;  // pages
constexpr int most_copies = 12;

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
  const Status sent = send_all(socket, call + "\n");  // a pager that refuses has answered before it was asked
  std::size_t end;
  while ((end = heard.find('\n')) == std::string::npos) {
    char text[4096];
    const ssize_t n = ::read(socket.get(), text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return sent ? fail(Errc::unavailable, "the pager has ended") : context(sent.error(), "pager");
    heard.append(text, static_cast<std::size_t>(n));
  }
  json answer = json::parse(heard.substr(0, end), nullptr, false);
  heard.erase(0, end + 1);
  if (!answer.is_object()) return fail(Errc::corrupt, "the pager's answer is no JSON object");
  if (const auto error = answer.find("error"); error != answer.end())
    return fail(errc_from_name(error->value("code", "")), "{}", error->value("message", ""));
  return answer;
}

/// Rounds while the guest runs, until no more than 1/8 of the memory is left, or as little as there will be: of what a round saved, more than three
/// quarters were written again meanwhile, or it left hardly less than the one before. Returns what is left.
Result<std::uint64_t> converge(const os::Fd& socket, std::string& heard, std::string call, const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  std::uint64_t before = ~std::uint64_t{0}, saved = 0;
  for (int rounds = 0; rounds < most_rounds; ++rounds) {
    YADO_ASSIGN(const json answer, exchange(socket, heard, call), "memory");
    const auto left = answer.value("left", std::uint64_t{0});
    saved += answer.value("pages", std::uint64_t{0});
    if (progress) progress(saved, left);
    const auto here = answer.value("here", std::uint64_t{0});
    const bool no_more = left > here - here / 4 || left > before - before / 10;
    before = left;
    if (no_more || left <= std::max(little, answer.value("memory_pages", std::uint64_t{0}) / part_to_copy)) break;
    call = R"({"do":"round"})";
  }
  return before;
}

/// What is written during a copy, and not during a round at the disk's speed, is what the guest stands still for.
Status copy(const os::Fd& socket, std::string& heard, std::uint64_t before) {
  for (int copies = 0; copies < most_copies && before > very_little; ++copies) {
    YADO_ASSIGN(const json answer, exchange(socket, heard, R"({"do":"copy"})"), "memory");
    const auto left = answer.value("left", std::uint64_t{0});
    if (copies > 0 && left > before - before / 4) break;  // the first one is slow: it takes the room for the others
    before = left;
  }
  return {};
}

/// "ok", or "CODE:why" of a pager that cannot begin; later perhaps "lost:why". Empty: it has ended without a word.
std::string line_of(const os::Fd& told) {
  std::string line;
  for (char one;;) {
    const ssize_t n = ::read(told.get(), &one, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0 || one == '\n') return line;
    line += one;
  }
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
  YADO_ASSIGN(os::Pipe told, os::make_pipe(), "pager");
  os::Spawn spawn{.arguments = paging.program};
  spawn.arguments.push_back(file);
  spawn.standard_error = STDERR_FILENO;
  spawn.descriptors = {{theirs.get(), hook_descriptor}, {told.write.get(), told_descriptor}};
  spawn.death_signal = SIGKILL;
  spawn.in_child = [&paging]() -> Status {
    if (paging.network_namespace >= 0 && ::setns(paging.network_namespace, CLONE_NEWNET) != 0) return fail_errno("enter the host's network");
    return {};
  };
  YADO_ASSIGN(made.process_, os::spawn(spawn), "pager");
  YADO_TRY(os::replace_text(directory / "pager.pid", fmt::format("{}\n", made.process_.pidfd().pid())), "pager");
  made.told_ = std::move(told.read);
  return made;
}

Status PagerProcess::wait_ready() {
  const std::string said = line_of(told_);
  if (said == "ok") return {};
  const std::size_t colon = said.find(':');
  if (colon == std::string::npos) return fail(Errc::internal, "the pager ended before it was ready");
  return fail(static_cast<Errc>(std::atoi(said.c_str())), "{}", said.substr(colon + 1));
}

std::string PagerProcess::last_words() const {
  if (!os::readable_within(told_.get(), 0ns).value_or(false)) return {};
  constexpr std::string_view lost = "lost:";
  const std::string said = line_of(told_);
  return said.starts_with(lost) ? said.substr(lost.size()) : std::string();
}

Status PagerProcess::inherit(pager::ServiceConfig config) const {
  config.waits = false;
  config.control = control_;
  const json call{{"do", "inherit"}, {"config", json::parse(to_text(config))}};
  YADO_TRY(ask_pager(control_, call.dump()), "inherit");
  return {};
}

Status PagerProcess::own(std::uint64_t epoch) const {
  YADO_TRY(ask_pager(control_, json{{"do", "own"}, {"epoch", epoch}}.dump()), "memory");
  return {};
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

std::uint64_t PagedMemory::half_of_free_memory() {
  const std::uint64_t available = os::memory_available();
  return available != 0 ? available / 2 : std::numeric_limits<std::uint64_t>::max();
}

/// Half of the processor time that it had, round by round. Returns what is left. Who writes too much for the room even with the least of it is
/// written while it stands still: that is not much by then.
Result<std::uint64_t> PagedMemory::slow_down_until_there_is_room(std::uint64_t left, Brake& brake) {
  if (left * pager::page_bytes <= options_.room_for_copies()) return left;  // also where nobody can measure or slow down a guest
  constexpr double least_cpus = 0.01;
  double cpus = 0;  // unknown
  Instant begun = os::now();
  YADO_ASSIGN(nanoseconds used, brake.used(), "memory");
  for (std::uint64_t room; left * pager::page_bytes > (room = options_.room_for_copies());) {
    const std::string too_much = fmt::format("memory: the guest goes on writing {} MiB, and this host has room for a copy of {} MiB", left * pager::page_bytes >> 20, room >> 20);
    if (rest_at_the_cut_) {
      log::warn("{}; slowing it down did not help: it stands still until they are written", too_much);
      return left;
    }
    if (cpus > 0) {
      if (const Status slower = brake.limit(cpus); !slower) return fail(Errc::no_space, "{}; it cannot be slowed down: {}", too_much, slower.error().message);
    }
    rest_at_the_cut_ = cpus > 0 && cpus <= least_cpus;  // after this round
    YADO_ASSIGN(const json answer, exchange(socket_, heard_, R"({"do":"round"})"), "memory");
    left = answer.value("left", std::uint64_t{0});
    const Instant now = os::now();
    YADO_ASSIGN(const nanoseconds used_now, brake.used(), "memory");
    const double had = to_ms(used_now - used) / std::max(to_ms(now - begun), 1.0);
    cpus = std::max((cpus > 0 ? std::min(cpus, had) : had) / 2, least_cpus);
    begun = now;
    used = used_now;
  }
  rest_at_the_cut_ = false;
  return left;
}

Status PagedMemory::before_pause(Brake& brake) {
  YADO_ASSIGN(socket_, connect_to(options_.control), "memory");
  const json begin{{"do", "save"}, {"part", options_.part.native()}, {"name", options_.name}, {"cut", options_.cut.hex()},
                   {"base_cut", options_.base_cut.none() ? "" : options_.base_cut.hex()}, {"base", options_.base}, {"bytes_per_second", options_.bytes_per_second}};
  YADO_ASSIGN(std::uint64_t left, converge(socket_, heard_, begin.dump(), options_.progress), "memory");
  YADO_ASSIGN(left, slow_down_until_there_is_room(left, brake), "memory");
  return rest_at_the_cut_ ? Status() : copy(socket_, heard_, left);
}

Status PagedMemory::save(const os::Fd&, std::uint64_t) {
  if (rest_at_the_cut_) YADO_TRY(ask(R"({"do":"rest"})"), "at the cut");
  YADO_TRY(ask(R"({"do":"fix"})"), "at the cut");
  return {};
}

Status PagedMemory::learn_shares(const std::string& call) {
  YADO_ASSIGN(const json answer, exchange(socket_, heard_, call), "memory");
  shares_.clear();
  base_cut_ = image::CutId::from_hex(answer.value("base_cut", ""));
  bytes_per_second_ = answer.value("bytes_per_second", std::uint64_t{0});
  for (const json& share : answer.at("shares"))
    shares_.push_back({share.value("host", ""), share.value("pages", std::uint64_t{0}), share.value("bytes", std::uint64_t{0}), share.value("sum", "")});
  return {};
}

Status PagedMemory::after_pause() { return learn_shares(R"({"do":"finish"})"); }
Status PagedMemory::keep() { return learn_shares(R"({"do":"keep"})"); }

Status LeavingMemory::before_pause(Brake& brake) {
  YADO_ASSIGN(socket_, connect_to(options_.control), "memory");
  rounds_ = Convergence(options_.rounds);
  std::string call = json{{"do", "leave"}, {"to", options_.to}}.dump();
  for (;;) {
    const Instant begun = os::now();
    const auto used_before = brake.used();
    YADO_ASSIGN(const json answer, exchange(socket_, heard_, call), "memory");
    const auto used = brake.used();
    Convergence::Round round{.sent = answer.value("pages", std::uint64_t{0}), .left = answer.value("left", std::uint64_t{0}), .took = os::now() - begun};
    if (used_before && used) round.cpus = to_ms(*used - *used_before) / to_ms(round.took);
    else rounds_.cannot_slow_down();
    const Convergence::Step step = rounds_.after(round);
    if (options_.progress) options_.progress(rounds_.sent(), rounds_.left());
    if (step == Convergence::Step::stop) return {};
    if (step == Convergence::Step::slow_down)
      if (const Status slower = brake.limit(rounds_.cpus()); !slower) {
        log::warn("move: the guest cannot be slowed down: {}", slower.error().text());
        rounds_.cannot_slow_down();
      }
    call = R"({"do":"round"})";
  }
}

std::string LeavingMemory::text() const {
  std::string text = fmt::format("{} MiB in {} rounds; the last {} pages in {:.0f} ms, standing still", rounds_.sent() * pager::page_bytes >> 20,
                                 rounds_.rounds(), rounds_.left(), to_ms(last_pages_took_));
  if (rounds_.cpus() > 0) text += fmt::format("; it wrote faster than pages go, and was slowed down to {:.2f} processors", rounds_.cpus());
  return text;
}

/// The connection stays open: as long as it is, the pager keeps everything as it is.
Status LeavingMemory::save(const os::Fd&, std::uint64_t) {
  const Instant begun = os::now();
  YADO_ASSIGN(const json answer, exchange(socket_, heard_, json{{"do", "left"}, {"part", options_.part.native()}}.dump()), "memory");
  last_pages_took_ = os::now() - begun;
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

Status write_use(const fs::path& control, const std::string& cut, const fs::path& into) {
  YADO_TRY(ask_pager(control, json{{"do", "used"}, {"cut", cut}, {"into", into.native()}}.dump()), "memory");
  return {};
}

Status wait_until_drained(const fs::path& control) {
  YADO_TRY(ask_pager(control, R"({"do":"drained"})"), "memory");
  return {};
}

}  // namespace yado::vm
